"""Weights stored as sparse tensors, read as what they are to every operator: dense ones."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, SparseTensorProto, numpy_helper


def densified(model: ModelProto) -> ModelProto:
    """The model with a dense initializer for each sparse one; the model itself where there is none."""
    if not model.graph.sparse_initializer:
        return model
    made = ModelProto()
    made.CopyFrom(model)
    for sparse in model.graph.sparse_initializer:
        tensor = numpy_helper.from_array(dense_form(sparse), sparse.values.name)
        tensor.data_type = sparse.values.data_type
        made.graph.initializer.append(tensor)
    del made.graph.sparse_initializer[:]
    return made


def dense_form(sparse: SparseTensorProto) -> np.ndarray:
    """The numbers with their zeros; places are given in the flattened tensor or axis by axis."""
    values, places = np.array(numpy_helper.to_array(sparse.values)), numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    numbers = np.zeros(int(np.prod(shape, dtype=np.int64)), values.dtype)
    numbers[places if places.ndim == 1 else np.ravel_multi_index(tuple(places.T), shape)] = values
    return numbers.reshape(shape)
