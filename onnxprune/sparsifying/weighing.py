"""
What zeros are worth in the file.

Told apart from what dense pruning saves: kernels for dense weights multiply with zeros as slowly as with other numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.reading.graph import constants_of
from onnxprune.reading.numbers import stored_bytes
from onnxprune.reading.sparse import dense_form
from onnxprune.sparsifying.sparse_form import as_sparse


@dataclass(frozen=True, slots=True)
class WeightZeros:
    """How many of the numbers of one weight are zero."""

    name: str
    size: int
    zeros: int


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """Zeros by weight (matrices and kernels, not vectors), and the bytes of the model in dense and in sparse form."""

    weights: tuple[WeightZeros, ...]
    bytes_dense: int
    bytes_sparse: int

    @property
    def size(self) -> int:
        """Numbers in all of them."""
        return sum(weight.size for weight in self.weights)

    @property
    def zeros(self) -> int:
        """Zeros in all of them."""
        return sum(weight.zeros for weight in self.weights)


def weights_report(model: ModelProto) -> WeightsReport:
    """Zeros and bytes of a model, whose weights are dense or sparse."""
    weights = tuple(WeightZeros(name, numbers.size, int((numbers == 0).sum())) for name, numbers in numbers_of(model))
    return WeightsReport(weights, dense_bytes(model), stored_bytes(as_sparse(model)))


def numbers_of(model: ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """Every float constant of two axes or more, by name."""
    for name, constant in constants_of(model.graph).items():
        if constant.is_float and len(constant.shape) > 1:
            yield name, constant.array()
    for sparse in model.graph.sparse_initializer:
        yield sparse.values.name, dense_form(sparse)


def dense_bytes(model: ModelProto) -> int:
    """Bytes of the file with every weight dense."""
    gained = sum(dense_form(sparse).nbytes - sparse.ByteSize() for sparse in model.graph.sparse_initializer)
    return stored_bytes(model) + gained
