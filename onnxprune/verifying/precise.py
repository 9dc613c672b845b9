"""
The arbiter where float32 cannot decide: both models computed in float64.

Some networks amplify rounding: of two equal computations in another order, outputs may differ by a percent. In float64
equal models still agree to many digits, and unequal ones do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import load_op

from onnxprune.reading.numbers import numbers, whole

TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})
"""Attributes that name an element type."""


class Evaluator(ReferenceEvaluator):
    """ONNX's; an operator at a version from before all implementations is computed by the oldest one."""

    def _load_impl(self, node: NodeProto, input_types: TypeProto | None = None) -> Any:
        try:
            return super()._load_impl(node, input_types)
        except RuntimeError as failure:
            for version in (
                () if node.domain else range(self.opsets[node.domain] + 1, onnx.defs.onnx_opset_version() + 1)
            ):
                try:
                    return load_op(node.domain, node.op_type, version)
                except RuntimeError:
                    continue
            raise failure


def outputs_in_float64(model: ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    Every output, computed by ONNX's reference implementation with float64 in place of float32.

    Raises whatever that implementation raises for an operator that it does not have.
    """
    evaluator = Evaluator(in_float64(model))
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}
    with np.errstate(all="ignore"):
        return dict(zip(evaluator.output_names, evaluator.run(None, wide), strict=True))


def in_float64(model: ModelProto) -> ModelProto:
    """The same graph with float64 wherever it has float32."""
    copy = ModelProto()
    copy.CopyFrom(whole(model))
    for graph in graphs(copy.graph):
        for tensor in tensors(graph):
            if tensor.data_type == TensorProto.FLOAT:
                tensor.CopyFrom(numpy_helper.from_array(numbers(tensor).astype(np.float64), tensor.name))
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type == TensorProto.FLOAT:
                info.type.tensor_type.elem_type = TensorProto.DOUBLE
        for attribute in attributes(graph):
            if attribute.name in TYPE_ATTRIBUTES and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
        del graph.value_info[:]
    return copy


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and every body in it."""
    yield graph
    for attribute in attributes(graph):
        if attribute.HasField("g"):
            yield from graphs(attribute.g)


def attributes(graph: GraphProto) -> Iterator[AttributeProto]:
    for node in graph.node:
        yield from node.attribute


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for attribute in attributes(graph):
        if attribute.HasField("t"):
            yield attribute.t
