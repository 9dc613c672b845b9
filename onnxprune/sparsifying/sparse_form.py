"""Weights of many zeros written down as the numbers that are left and where they stand: ONNX's sparse initializers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.reading.graph import FLOAT_TYPES
from onnxprune.reading.numbers import byte_size, numbers
from onnxprune.reading.observing import session_for
from onnxprune.rewriting.editing import copy_fields


def as_sparse(model: ModelProto) -> ModelProto:
    """
    The model with every float initializer in sparse form that takes fewer bytes so and that ONNX Runtime reads so.

    An index takes eight bytes, so float32 weights need more than two thirds of zeros. Numbers, names and everything
    else stay; ONNX Runtime makes dense weights of it when it loads, so only the file is smaller. ONNX's own checker
    takes such a model, but not with full check: its shape inference knows dense weights only. Check the model before.

    Source: the ONNX specification, `SparseTensorProto` (coordinates of the flattened tensor).
    """
    return with_sparse(model, readable(model, tuple(smaller_as_sparse(model))))


def smaller_as_sparse(model: ModelProto) -> Iterator[str]:
    """Names of initializers that take fewer bytes in sparse form."""
    fed = {port.name for port in (*model.graph.input, *model.graph.output)}
    for tensor in model.graph.initializer:
        if tensor.data_type not in FLOAT_TYPES or not tensor.dims or tensor.name in fed:
            continue
        if sparse_form(tensor).ByteSize() < byte_size(tensor):
            yield tensor.name


def readable(model: ModelProto, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the names whose sparse form ONNX Runtime reads: all together, or else one by one."""
    if not names or loads(with_sparse(model, names)):
        return tuple(names)
    return tuple(name for name in names if len(names) > 1 and loads(with_sparse(model, (name,))))


def loads(model: ModelProto) -> bool:
    """Does ONNX Runtime take the model?"""
    try:
        session_for(model)
    except ModelError:
        return False
    return True


def with_sparse(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The model with these initializers in sparse form."""
    made, wanted = ModelProto(), frozenset(names)
    copy_fields(model, made, skip={"graph"})
    copy_fields(model.graph, made.graph, skip={"initializer"})
    for tensor in model.graph.initializer:
        if tensor.name in wanted:
            made.graph.sparse_initializer.append(sparse_form(tensor))
        else:
            made.graph.initializer.append(tensor)
    return made


def sparse_form(tensor: TensorProto) -> SparseTensorProto:
    """The numbers other than zero, and where they stand in the flattened tensor."""
    flat = numbers(tensor).ravel()
    places = np.flatnonzero(flat).astype(np.int64)
    values = numpy_helper.from_array(flat[places], tensor.name)
    values.data_type = tensor.data_type
    copy_fields(tensor, values, skip=set(TensorProto.DESCRIPTOR.fields_by_name) - {"doc_string", "metadata_props"})
    return SparseTensorProto(values=values, indices=numpy_helper.from_array(places), dims=tensor.dims)
