"""One layer by itself: its features for given inputs, and its weights as a matrix."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from onnxprune.reading.observing import Session, session_for
from onnxprune.repairing.consumers import Consumer

DATA, WEIGHT, BIAS = "onnxprune.data", "onnxprune.weight", "onnxprune.bias"


def as_matrix(weight: np.ndarray, consumer: Consumer) -> np.ndarray:
    """The weight as `[features, outputs]`."""
    return np.moveaxis(weight, consumer.made, -1).reshape(-1, weight.shape[consumer.made])


def from_matrix(matrix: np.ndarray, like: np.ndarray, consumer: Consumer) -> np.ndarray:
    """The matrix in the form and type of the weight that it came from."""
    rest = np.delete(np.array(like.shape), consumer.made)
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(*rest, -1), -1, consumer.made).astype(like.dtype))


class Features:
    """
    What a layer multiplies its weights with: `[rows, features]` for each batch of inputs.

    A layer is linear in its weight, so its output under a weight of zeros with a single one is what that one number is
    multiplied with. All of them are found by one run, with one output channel for each number: for a convolution these
    are the patches of its input, whatever its kernel, stride, padding and dilation.
    """

    def __init__(self, node: NodeProto, model: ModelProto, consumer: Consumer, weight: np.ndarray) -> None:
        self._made_at = consumer.made_at
        rest = np.delete(np.array(weight.shape), consumer.made)
        self.count = int(np.prod(rest))
        ones = np.eye(self.count, dtype=weight.dtype).reshape(*rest, self.count)
        self._ones = np.ascontiguousarray(np.moveaxis(ones, -1, consumer.made))
        self._session = alone(node, model, consumer)

    def of(self, data: np.ndarray) -> np.ndarray:
        """The features of a batch."""
        (found,) = self._session.run(None, {DATA: data, WEIGHT: self._ones})
        return as_rows(found, self._made_at)


def as_rows(output: np.ndarray, made_at: int) -> np.ndarray:
    """A layer's output as `[rows, outputs]`."""
    return np.moveaxis(output, made_at, -1).reshape(-1, output.shape[made_at])


def alone(node: NodeProto, model: ModelProto, consumer: Consumer) -> Session:
    """The layer without its bias, as a session that takes its input and its weight."""
    own = NodeProto()
    own.CopyFrom(node)
    names = {consumer.data: DATA, consumer.weight: WEIGHT}
    own.input[:] = [names.get(number, "") for number in range(1 + max(names))]
    return session_of(own, model, consumer.element_type)


def bias_effect(
    node: NodeProto, model: ModelProto, consumer: Consumer, feeds: Mapping[int, np.ndarray], bias: np.ndarray
) -> float | None:
    """
    By how much a layer's output grows when its number in the bias grows by one; None if the bias does anything else.

    `node` is the one that reads the bias, and `feeds` are its other inputs by number. Where the layer's output is one
    of them, what more of the bias does is held against what more of that output does.
    """
    own = NodeProto()
    own.CopyFrom(node)
    assert consumer.bias is not None
    read = next((number for number in feeds if node.input[number] == consumer.output), None)
    names = {number: f"{DATA}.{number}" for number in feeds} | {consumer.bias: BIAS}
    for number, name in names.items():
        own.input[number] = name
    session = session_of(own, model, consumer.element_type)
    others = {names[number]: array for number, array in feeds.items()}

    def output(values: np.ndarray, more: int = 0) -> np.ndarray:
        feed = others | {BIAS: values.reshape(bias.shape).astype(bias.dtype)}
        if read is not None:
            feed[names[read]] = feeds[read] + np.full_like(feeds[read], more)
        (found,) = session.run(None, feed)
        return as_rows(np.asarray(found, np.float64), consumer.made_at)

    nothing, numbers = output(np.zeros(bias.size)), 1 + np.arange(bias.size) % 7
    grown = (output(numbers) - nothing) / numbers
    if read is not None:
        by_more = output(np.zeros(bias.size), more=1) - nothing
        grown = grown[by_more != 0] / by_more[by_more != 0]
    effect = float(grown.mean()) if grown.size else 0.0
    return effect if effect and np.allclose(grown, effect, rtol=1e-3, atol=1e-4) else None


def session_of(
    node: NodeProto, model: ModelProto, element_type: int, others: Mapping[str, int] | None = None
) -> Session:
    """A node as a model of its own, all its inputs fed; `others` names those of another element type."""
    part = ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    part.graph.name = "layer"
    part.graph.node.append(node)
    types = {name: element_type for name in node.input if name} | dict(others or {})
    part.graph.input.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in types.items())
    part.graph.output.extend(ValueInfoProto(name=name) for name in node.output if name)
    return session_for(part, threads=1)  # more would spin while numpy works
