"""Refitting one layer that is linear in its weight, as a node of one block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.fitting import FittedStep
from onnxprune.repairing.layers import Features, as_matrix, from_matrix
from onnxprune.repairing.places import Place
from onnxprune.rules.axes import Dim, leaves


@dataclass(frozen=True)
class ConsumerStep:
    """A step about one such layer: where it stands and what it reads."""

    couplings: Couplings
    consumer: Consumer

    @property
    def position(self) -> int:
        """Of its node in the graph."""
        return self.consumer.node.position

    @property
    def reads(self) -> frozenset[Dim]:
        """The Dims that it sums over."""
        return frozenset(leaves(self.consumer.type))


class LinearStep(ConsumerStep, FittedStep):
    """One such layer, by least squares."""

    def form(self, model: ModelProto, weight: Place, kept: Kept) -> OneBlock:
        """Its weight as one block."""
        return OneBlock(model, weight, self.consumer)


def linear_steps(couplings: Couplings) -> Iterator[LinearStep]:
    """Every layer of the model that is linear in its weight."""
    for consumer in consumers(couplings):
        yield LinearStep(couplings, consumer)


class OneBlock:
    """The layer's weight as one block of its node."""

    def __init__(self, model: ModelProto, weight: Place, consumer: Consumer) -> None:
        self.place, self._consumer, self._weight = weight, consumer, weight.array
        self._features = Features(weight.node, model, consumer, self._weight)

    @property
    def matrices(self) -> np.ndarray:
        """`[1, features, outputs]`."""
        return as_matrix(self._weight, self._consumer)[None]

    def weight(self, matrices: np.ndarray) -> np.ndarray:
        """Such a matrix in the form and type of the weight."""
        return from_matrix(matrices[0], self._weight, self._consumer)

    def features(self, data: np.ndarray) -> np.ndarray:
        """`[rows, 1, features]` of a batch."""
        return self._features.of(data)[:, None]
