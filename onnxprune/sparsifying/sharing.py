"""How many weights each layer loses, when all layers together are to lose so many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class Curve:
    """What a layer loses: its error, over the variance of its outputs, when so many of its weights are zero."""

    zeros: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def hull(self) -> tuple[tuple[int, float], ...]:
        """The points under which no other lies, so that each further weight costs more than the one before."""
        found: list[tuple[int, float]] = []
        for point in zip(self.zeros, self.errors, strict=True):
            while len(found) > 1 and slope(found[-2], found[-1]) >= slope(found[-1], point):
                found.pop()
            found.append(point)
        return tuple(found)


def slope(one: tuple[int, float], other: tuple[int, float]) -> float:
    """What each weight costs from one point to the other."""
    return (other[1] - one[1]) / (other[0] - one[0])


def shared_by_curves(curves: Sequence[Curve], total: int) -> tuple[int, ...]:
    """Zeros for each layer, `total` in all, of least summed error along the curves' hulls."""
    pieces = sorted(
        (slope(one, other), layer, other[0] - one[0])
        for layer, curve in enumerate(curves)
        for one, other in pairwise(curve.hull)
    )
    found = [0] * len(curves)
    for _, layer, weights in pieces:
        taken = min(weights, total - sum(found))
        found[layer] += taken
    return tuple(found)


def shared_by_size(magnitudes: Sequence[np.ndarray], total: int) -> tuple[int, ...]:
    """Zeros for each layer, so that the `total` smallest numbers of all layers together go."""
    owners = np.repeat(np.arange(len(magnitudes)), [layer.size for layer in magnitudes])
    order = np.argsort(np.concatenate([layer.ravel() for layer in magnitudes]), kind="stable")
    return tuple(int(number) for number in np.bincount(owners[order[:total]], minlength=len(magnitudes)))
