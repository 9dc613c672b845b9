"""What each layer that is linear in its weight reads on calibration samples, as the Gram matrix of its features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.gates import channels_at
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.layers import Features, as_matrix
from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.repairing.linear import Bias
from onnxprune.repairing.places import Place
from onnxprune.repairing.rows import BATCH, REPAIR_SAMPLES, ROWS_A_SAMPLE, fed
from onnxprune.rules.axes import leaves

RIDGE = 1e-3
"""Added to the Gram matrix's diagonal, in units of its mean."""

MOST_FEATURES = 8192
"""Layers of more features than that are left out: their Gram matrix would take gigabytes."""

MOST_BYTES = 2**30
"""Gram matrices that are kept; the oldest are measured again when they are wanted again."""


@dataclass(frozen=True)
class Moments:
    """
    A layer of the original: the Gram matrix of its features a row, its weights, and the energy of its outputs a row.

    The last feature is the constant 1, whose weight is 0 here: what the bias gains. `gram` is
    `[features + 1, features + 1]` with the ridge on it, `weights` `[features + 1, outputs]`.
    """

    gram: np.ndarray
    weights: np.ndarray
    energy: float
    bias: Bias | None

    def without(self, gone: np.ndarray, *, constant_is_free: bool) -> np.ndarray:
        """The weights of least squared error when these features are gone."""
        found = np.zeros_like(self.weights)
        last = len(self.gram) - 1
        left = np.setdiff1d(np.arange(last + constant_is_free), gone)
        found[left] = np.linalg.solve(self.gram[np.ix_(left, left)], self.gram[left] @ self.weights)
        return found


class Readings:
    """The moments of the layers of a model, each measured when it is asked for, and kept."""

    def __init__(self, couplings: Couplings, calibration: Calibration, *, threads: int = 0) -> None:
        self.couplings = couplings
        self.samples = calibration.first(REPAIR_SAMPLES)
        self._threads = threads
        self._layers = tuple(consumers(couplings))
        self._known: dict[str, Moments] = {}

    def readers(self, group: Group) -> tuple[Consumer, ...]:
        """The layers that read the group's channels and can be refitted."""
        dims = set(group.dims)
        return tuple(
            layer for layer in self._layers if not dims.isdisjoint(leaves(layer.type)) and not self._is_wide(layer)
        )

    def of(self, consumer: Consumer) -> Moments:
        """The layer's moments."""
        if consumer.output not in self._known:
            measured = self._measured(consumer)
            while (
                self._known and measured.gram.nbytes + sum(one.gram.nbytes for one in self._known.values()) > MOST_BYTES
            ):
                del self._known[next(iter(self._known))]
            self._known[consumer.output] = measured
        return self._known[consumer.output]

    def blocks(self, group: Group, consumer: Consumer) -> tuple[np.ndarray, ...]:
        """For each channel of the group, the features of the layer that go with it."""
        weight = self.couplings.graph.constants[consumer.node.inputs[consumer.weight]]
        shape = np.delete(np.array(weight.shape), consumer.made)
        summed = consumer.summed - (consumer.made < consumer.summed)
        numbers = np.moveaxis(np.arange(int(shape.prod())).reshape(shape), summed, 0)
        standing = channels_at(consumer.type, group.dims)
        places = (np.any([along == channel for along in standing], axis=0) for channel in range(group.size))
        return tuple(numbers[place].ravel() for place in places)

    def _is_wide(self, consumer: Consumer) -> bool:
        weight = self.couplings.graph.constants[consumer.node.inputs[consumer.weight]]
        return weight.size // weight.shape[consumer.made] > MOST_FEATURES

    def _measured(self, consumer: Consumer) -> Moments:
        model = self.couplings.graph.model
        weight = Place(model, consumer.output, consumer.weight).array
        features = Features(model.graph.node[consumer.node.position], model, consumer, weight)
        source = session_for(up_to(model, [consumer.input]), threads=self._threads or 1)
        sums, rng = NormalEquations(features.count, 0), np.random.default_rng(0)
        for batch in self.samples.batches(BATCH):
            (data,) = source.run(None, fed(source, self.samples.at(self.samples.filled(batch))))
            rows = features.of(data)
            some = rows[rng.permutation(len(rows))[: ROWS_A_SAMPLE * len(batch)]]
            sums.add(some, np.zeros((len(some), 0)))
        gram = sums.gram / max(sums.rows, 1)
        weights = np.vstack([as_matrix(weight, consumer).astype(np.float64), np.zeros(weight.shape[consumer.made])])
        energy = max(float((weights * (gram @ weights)).sum()), 1e-30)
        ridge = RIDGE * max(float(np.trace(gram)) - 1, 1e-12) / features.count
        bias = Bias.of(model, consumer, self.samples)
        return Moments(gram + ridge * np.eye(len(gram)), weights, energy, bias)
