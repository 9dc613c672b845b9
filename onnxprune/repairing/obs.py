"""
What the repaired consumers of a group lose when its channels go: the order in which to remove them.

With inputs x and weights W, the least squares error that is left after a block b of inputs goes, and all other weights
are fitted anew, is  W_b' (H_bb)^-1 W_b  with H the inverse of the Gram matrix of x. Greedily the cheapest channel goes,
then W and H are those of the layer without it.

Source: Hassibi and Stork 1993, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon; here for the blocks
of a channel in every layer that reads it, over the energy of that layer's outputs.

A layer that runs along time reads its own units too. The sums of a unit's own gates count on when the unit has gone:
leaving them out made no difference that could be told from chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.couple import Group
from onnxprune.errors import UsageError
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of
from onnxprune.repairing.readings import Reader, Readings


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


def optimal_brain_surgeon(
    readings: Readings, groups: Sequence[Group], *, progress: Callable[[str, int, int], None] | None = None
) -> Sensitivities:
    """
    For each channel the error that its going adds to the layers that read it, all of them refitted, in greedy order.

    A channel's score is always above that of one that goes before it, so scores say the order. Groups that no layer
    reads which could be refitted get the largest score: they are pruned last.

    Raises:
        UsageError: there is no such layer for any group.
    """
    scores = {}
    for number, group in enumerate(groups):
        layers = [remaining(readings, group, reader) for reader in readings.readers(group)]
        scores[group.name] = greedy(layers, group.size) if layers else np.full(group.size, np.inf)
        if progress:
            progress(group.name, number + 1, len(groups))
    if groups and all(np.isinf(values).all() for values in scores.values()):
        raise UsageError(
            "Expected a layer behind the groups that could be refitted (a matrix product, a convolution), found none. "
            "Take --criterion sensitivity."
        )
    return sensitivities_of(readings.couplings, scores, criterion="obs", samples=len(readings.samples))


def remaining(readings: Readings, group: Group, reader: Reader) -> Remaining:
    """The reader with all channels of the group there."""
    moments = readings.of(reader)
    inverse = np.linalg.inv(moments.gram)
    return Remaining(inverse, moments.weights, readings.blocks(group, reader), moments.energy)


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
