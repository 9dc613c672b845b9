"""Refitting one layer that is linear in its weight, as a node of one block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.repairing.behind import behind
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.fitting import refit
from onnxprune.repairing.layers import Features, as_matrix, from_matrix
from onnxprune.repairing.places import Place
from onnxprune.repairing.steps import Refit
from onnxprune.repairing.wanted import Wanted, rows_a_sample
from onnxprune.rules.axes import Dim, kept_positions, leaves


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


class LinearStep(ConsumerStep):
    """One such layer, by least squares."""

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give the layer the weights that fit best; nothing is said of one that cannot change."""
        typing, consumer = self.couplings.typing, self.consumer
        weight = Place(model, consumer.output, consumer.weight)
        made = typing.axes(typing.tensors[consumer.output])[consumer.made_at]
        graph, positions = self.couplings.graph, kept_positions(made, kept)
        bias = Bias.of(model, consumer, samples, len(positions)) if weight.can_change else None
        if bias is None:
            return
        rows = rows_a_sample(consumer, graph)
        wanted = Wanted(graph.model, consumer, positions, samples, threads, rows, behind(self.couplings, consumer))
        yield from refit(model, OneBlock(model, weight, consumer), bias, wanted)


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
