"""
What the repaired consumers of a group lose when its channels go: the order in which to remove them.

With inputs x and weights W, the least squares error that is left after a block b of inputs goes, and all other weights
are fitted anew, is  W_b' (H_bb)^-1 W_b  with H the inverse of the Gram matrix of x. Greedily the cheapest channel goes,
then W and H are those of the layer without it.

Source: Hassibi and Stork 1993, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon; here for the blocks
of a channel in every layer that reads it, over the energy of that layer's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import UsageError
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.gates import channels_at
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.layers import Features, as_matrix
from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.repairing.places import Place
from onnxprune.repairing.rows import BATCH, REPAIR_SAMPLES, ROWS_A_SAMPLE, fed
from onnxprune.rules.axes import leaves

RIDGE = 1e-3
"""Added to the Gram matrix's diagonal, in units of its mean."""


@dataclass
class Remaining:
    """
    A layer without the channels that are gone: `inverse` of its Gram matrix and `weights` `[features + 1, outputs]`.

    `blocks[c]` are the features of channel c; `energy` is that of the outputs.
    """

    inverse: np.ndarray
    weights: np.ndarray
    blocks: tuple[np.ndarray, ...]
    energy: float

    def losses(self) -> np.ndarray:
        """The error that each channel's going adds, over the energy of the outputs; `[channels]`."""
        found = np.zeros(len(self.blocks))
        sizes = np.array([len(block) for block in self.blocks])
        for size in set(sizes) - {0}:
            alike = np.flatnonzero(sizes == size)
            blocks = np.stack([self.blocks[channel] for channel in alike])
            weights = self.weights[blocks]
            solved = np.linalg.solve(self.inverse[blocks[:, :, None], blocks[:, None, :]], weights)
            found[alike] = (weights * solved).sum((1, 2)) / self.energy
        return found

    def remove(self, channel: int) -> None:
        """Fit the layer anew without a channel."""
        block = self.blocks[channel]
        if not len(block):
            return
        rows = self.inverse[block]
        solved = np.linalg.solve(rows[:, block], np.hstack([rows, self.weights[block]]))
        self.weights = self.weights - rows.T @ solved[:, rows.shape[1] :]
        self.inverse = self.inverse - rows.T @ solved[:, : rows.shape[1]]
        self.weights[block] = 0
        self.inverse[block], self.inverse[:, block] = 0, 0
        self.inverse[block, block] = 1  # no weight is left there, so it costs nothing; it must only be solvable


@dataclass(frozen=True)
class Moments:
    """A whole layer: the inverse of its inputs' Gram matrix, its weights, and the energy of its outputs, a row each."""

    inverse: np.ndarray
    weights: np.ndarray
    energy: float

    def remaining(self, blocks: tuple[np.ndarray, ...]) -> Remaining:
        """The layer with all channels there."""
        return Remaining(self.inverse, self.weights, blocks, self.energy)


def optimal_brain_surgeon(
    couplings: Couplings,
    groups: Sequence[Group],
    calibration: Calibration,
    *,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Sensitivities:
    """
    For each channel the error that its going adds to the layers that read it, all of them refitted, in greedy order.

    A channel's score is always above that of one that goes before it, so scores say the order. Groups that no layer
    reads which could be refitted get the largest score: they are pruned last.

    Raises:
        UsageError: there is no such layer for any group.
    """
    layers = list(consumers(couplings))
    known: dict[str, Moments] = {}
    scores = {}
    for number, group in enumerate(groups):
        parts = []
        for consumer in layers:
            if set(group.dims).isdisjoint(leaves(consumer.type)):
                continue
            if consumer.output not in known:
                known[consumer.output] = moments(couplings, consumer, calibration, threads)
            parts.append(known[consumer.output].remaining(blocks_of(couplings, group, consumer)))
        scores[group.name] = greedy(parts, group.size) if parts else np.full(group.size, np.inf)
        if progress:
            progress(group.name, number + 1, len(groups))
    if groups and all(np.isinf(values).all() for values in scores.values()):
        raise UsageError(
            "Expected a layer behind the groups that could be refitted (a matrix product, a convolution), found none. "
            "Take --criterion sensitivity."
        )
    return sensitivities_of(couplings, scores, criterion="obs", samples=min(len(calibration), REPAIR_SAMPLES))


def greedy(layers: Sequence[Remaining], channels: int) -> np.ndarray:
    """Scores `[channels]`: the loss added when the channel goes, in the order in which the cheapest goes first."""
    scores, left = np.zeros(channels), np.ones(channels, bool)
    highest = 0.0
    for _ in range(channels):
        losses = np.where(left, sum(layer.losses() for layer in layers), np.inf)
        channel = int(losses.argmin())
        highest = max(float(np.nextafter(highest, np.inf)), float(losses[channel]))
        scores[channel], left[channel] = highest, False
        for layer in layers:
            layer.remove(channel)
    return scores


def moments(couplings: Couplings, consumer: Consumer, calibration: Calibration, threads: int) -> Moments:
    """What a layer is, on the samples that layers are refitted on."""
    model = couplings.graph.model
    weight = Place(model, consumer.output, consumer.weight).array
    features = Features(model.graph.node[consumer.node.position], model, consumer, weight)
    source = session_for(up_to(model, [consumer.input]), threads=threads or 1)
    sums, rng = NormalEquations(features.count, 0), np.random.default_rng(0)
    samples = calibration.first(REPAIR_SAMPLES)
    for batch in samples.batches(BATCH):
        (data,) = source.run(None, fed(source, samples.at(samples.filled(batch))))
        rows = features.of(data)
        some = rows[rng.permutation(len(rows))[: ROWS_A_SAMPLE * len(batch)]]
        sums.add(some, np.zeros((len(some), 0)))
    gram = sums.gram / max(sums.rows, 1)
    weights = np.vstack([as_matrix(weight, consumer).astype(np.float64), np.zeros(weight.shape[consumer.made])])
    energy = max(float((weights * (gram @ weights)).sum()), 1e-30)
    ridge = RIDGE * max(float(np.trace(gram)) - 1, 1e-12) / features.count
    return Moments(np.linalg.inv(gram + ridge * np.eye(len(gram))), weights, energy)


def blocks_of(couplings: Couplings, group: Group, consumer: Consumer) -> tuple[np.ndarray, ...]:
    """For each channel of the group, the features of a layer that go with it."""
    weight = couplings.graph.constants[consumer.node.inputs[consumer.weight]]
    shape = np.delete(np.array(weight.shape), consumer.made)
    summed = consumer.summed - (consumer.made < consumer.summed)
    numbers = np.moveaxis(np.arange(int(shape.prod())).reshape(shape), summed, 0)
    standing = channels_at(consumer.type, group.dims)
    places = (np.any([along == channel for along in standing], axis=0) for channel in range(group.size))
    return tuple(numbers[place].ravel() for place in places)
