"""
Redundancy: what the other channels of a group can say of one channel, as the layers that read them see it.

With H the inverse of the Gram matrix of what a layer reads, the part of a block b of features that all others together
cannot reconstruct has the covariance (H_bb)^-1.
"""

from __future__ import annotations

import numpy as np

from onnxprune.coupling.couple import Group
from onnxprune.repairing.obs import Remaining
from onnxprune.repairing.readings import RIDGE, Readings

SILENT = 1e-12
"""A feature of no more than this share of the energy of all says nothing."""


def redundancies(readings: Readings, group: Group) -> np.ndarray:
    """
    For each channel the share of it that is left over when the channels that are still there reconstruct it; `[size]`.

    The channels go in the order of these shares, each as of the moment that it goes; a score is never below that of one
    that went before. Where no layer reads the group that is known so well, infinity.
    """
    layers = [Residuals(readings, group, number) for number in range(len(readings.readers(group)))]
    if not layers:
        return np.full(group.size, np.inf)
    scores, left, highest = np.zeros(group.size), np.ones(group.size, bool), 0.0
    for _ in range(group.size):
        shares = np.where(left, np.mean([layer.shares() for layer in layers], axis=0), np.inf)
        channel = int(shares.argmin())
        highest = max(float(np.nextafter(highest, np.inf)), float(shares[channel]))
        scores[channel], left[channel] = highest, False
        for layer in layers:
            layer.remaining.remove(channel)
    return scores


class Residuals:
    """
    The channels of a group as one layer reads them, with those that have gone out of the reckoning.

    Features count in units of their own size: else the ridge would make weak and silent ones look like no other.
    """

    def __init__(self, readings: Readings, group: Group, number: int) -> None:
        reader = readings.readers(group)[number]
        gram = readings.of(reader).gram
        gram = gram - (gram[-1, -1] - 1) * np.eye(len(gram))  # the last feature is 1: what it has above is the ridge
        self.blocks = readings.blocks(group, reader)
        self.energies = np.where(np.diag(gram) > SILENT * np.trace(gram), np.diag(gram), 0.0)
        units = np.sqrt(np.divide(1, self.energies, out=np.zeros(len(gram)), where=self.energies > 0))
        inverse = np.linalg.inv(gram * np.outer(units, units) + RIDGE * np.eye(len(gram)))
        self.remaining = Remaining(inverse, np.zeros((len(inverse), 0)), self.blocks, 1.0)

    def shares(self) -> np.ndarray:
        """What is left over of each channel, over its energy; `[channels]`."""
        return np.array([self._share(block) for block in self.blocks])

    def _share(self, block: np.ndarray) -> float:
        energies = self.energies[block]
        if not energies.any():
            return 0.0
        left = np.diag(np.linalg.inv(self.remaining.inverse[np.ix_(block, block)])) - RIDGE
        return float(np.clip(left, 0, 1) @ energies / energies.sum())
