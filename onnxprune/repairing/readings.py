"""What each layer that is linear in its weights reads on calibration samples, as the Gram matrix of its features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.gates import channels_at
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.cells import Stored
from onnxprune.repairing.consumers import MOST_FEATURES, Consumer, consumers
from onnxprune.repairing.gate_sums import GateSums, can_change, gate_sums, grams, places
from onnxprune.repairing.layers import Features, as_matrix
from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.repairing.places import Place
from onnxprune.repairing.recurrent import recurrent_steps
from onnxprune.repairing.rows import BATCH, REPAIR_SAMPLES, ROWS_A_SAMPLE, fed
from onnxprune.rules.axes import Dim, leaves

RIDGE = 1e-3
"""Added to the Gram matrix's diagonal, in units of its mean."""

MOST_BYTES = 2**30
"""Gram matrices that are kept; the oldest are measured again when they are wanted again."""

Reader = Consumer | GateSums
"""A layer that is linear in one weight, or gates of one that runs along time."""


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
        running = (one for layer in recurrent_steps(couplings) if can_change(layer) for one in gate_sums(layer))
        narrow = (one for one in running if one.summed.size <= MOST_FEATURES)
        self._layers: tuple[Reader, ...] = (*consumers(couplings), *narrow)
        self._known: dict[str, Moments] = {}

    def readers(self, group: Group) -> tuple[Reader, ...]:
        """The layers that read the group's channels and can be refitted."""
        dims = set(group.dims)
        return tuple(reader for reader in self._layers if not dims.isdisjoint(dims_of(reader)))

    def of(self, reader: Reader) -> Moments:
        """The layer's moments."""
        if key_of(reader) not in self._known:
            for one, moments in self._measured(reader):
                self._keep(key_of(one), moments)
        return self._known[key_of(reader)]

    def blocks(self, group: Group, reader: Reader) -> tuple[np.ndarray, ...]:
        """For each channel of the group, the features of the layer that go with it."""
        if isinstance(reader, GateSums):
            return reader.blocks(group)
        weight = self.couplings.graph.constants[reader.node.inputs[reader.weight]]
        shape = np.delete(np.array(weight.shape), reader.made)
        summed = reader.summed - (reader.made < reader.summed)
        numbers = np.moveaxis(np.arange(int(shape.prod())).reshape(shape), summed, 0)
        standing = places(channels_at(reader.type, group.dims), group)
        return tuple(numbers[place].ravel() for place in standing)

    def _keep(self, key: str, moments: Moments) -> None:
        """Keep what was measured, and let the oldest go where there is too much."""
        while self._known and moments.gram.nbytes + sum(one.gram.nbytes for one in self._known.values()) > MOST_BYTES:
            del self._known[next(iter(self._known))]
        self._known[key] = moments

    def _measured(self, reader: Reader) -> Iterator[tuple[Reader, Moments]]:
        """The moments of the layer, and of those that come to be known with it; the layer itself last."""
        if isinstance(reader, GateSums):
            return self._of_gates(reader)
        return iter([(reader, self._of_linear(reader))])

    def _of_gates(self, reader: GateSums) -> Iterator[tuple[Reader, Moments]]:
        model = self.couplings.graph.model
        weights = Stored(model, reader.output, reader.layer.fact).directions()
        found = grams(reader.layer, model, self.samples, self._threads or 1)
        for one, gram in sorted(found, key=lambda pair: pair[0].key == reader.key):
            yield one, moments_of(gram, one.matrix(weights[one.direction]), None)

    def _of_linear(self, consumer: Consumer) -> Moments:
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
        matrix = np.vstack([as_matrix(weight, consumer), np.zeros(weight.shape[consumer.made])])
        return moments_of(sums.gram / max(sums.rows, 1), matrix, Bias.of(model, consumer, self.samples))


def moments_of(gram: np.ndarray, weights: np.ndarray, bias: Bias | None) -> Moments:
    """The moments of a layer, with the ridge; its last weights are the constant's."""
    weights = weights.astype(np.float64)
    energy = max(float((weights * (gram @ weights)).sum()), 1e-30)
    ridge = RIDGE * max(float(np.trace(gram)) - 1, 1e-12) / max(len(gram) - 1, 1)
    return Moments(gram + ridge * np.eye(len(gram)), weights, energy, bias)


def key_of(reader: Reader) -> str:
    """A name of its own for each."""
    return reader.key if isinstance(reader, GateSums) else reader.output


def dims_of(reader: Reader) -> frozenset[Dim]:
    """The Dims that it sums over."""
    return frozenset(leaves(reader.summed if isinstance(reader, GateSums) else reader.type))
