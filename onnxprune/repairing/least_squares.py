"""Ridge least squares from normal equations that are added up batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""
Ridge penalties that are tried, in units of the features' mean square.

The smallest let a layer do without channels that others can stand in for entirely; that they are no smaller keeps the
equations solvable where features are the same.
"""


class NormalEquations:
    """
    Sums over rows of features and of the outputs that are wanted, in float64.

    The last feature is the constant 1. `gram` is `[features + 1, features + 1]`, `cross` `[features + 1, outputs]`.
    """

    def __init__(self, features: int, outputs: int) -> None:
        self.gram = np.zeros((features + 1, features + 1))
        self.cross = np.zeros((features + 1, outputs))
        self.energy = 0.0
        self.rows = 0

    def add(self, features: np.ndarray, outputs: np.ndarray) -> None:
        """Take in rows `[rows, features]` and what is wanted of them, `[rows, outputs]`."""
        rows = np.concatenate([features, np.ones((len(features), 1))], axis=1, dtype=np.float64)
        wanted = outputs.astype(np.float64)
        self.gram += rows.T @ rows
        self.cross += rows.T @ wanted
        self.energy += float(np.square(wanted).sum())
        self.rows += len(rows)

    def error(self, weights: np.ndarray) -> float:
        """Squared error of weights `[features + 1, outputs]` over the energy of what is wanted."""
        squared = self.energy - 2 * float((weights * self.cross).sum()) + float((weights * (self.gram @ weights)).sum())
        return max(squared, 0.0) / max(self.energy, 1e-30)

    def solved(self, start: np.ndarray, penalty: float, *, constant_is_free: bool = True) -> np.ndarray:
        """
        The weights of least squared error plus `penalty` times their squared distance from `start`.

        The penalty is in units of the features' mean square; the constant's weight costs nothing, or does not move.
        """
        ridge = np.diag(self.ridge(penalty, constant_is_free=constant_is_free))
        return start + np.linalg.solve(self.gram + ridge, self.cross - self.gram @ start)

    def ridge(self, penalty: float, *, constant_is_free: bool) -> np.ndarray:
        """The penalty of each weight, `[features + 1]`."""
        features = len(self.gram) - 1
        ridge = np.full(features + 1, penalty * max(float(np.trace(self.gram)) - self.rows, 1e-12) / features)
        ridge[-1] = 1e-9 * self.rows if constant_is_free else 1e12 * self.rows
        return ridge


class Blocks:
    """The sums of many layers side by side, each with features and outputs of its own."""

    def __init__(self, blocks: int, features: int, outputs: int) -> None:
        self._gram = np.zeros((blocks, features + 1, features + 1))
        self._cross = np.zeros((blocks, features + 1, outputs))
        self._energy = np.zeros(blocks)
        self.rows = 0

    def add(self, features: np.ndarray, outputs: np.ndarray) -> None:
        """Take in rows `[rows, blocks, features]` and what is wanted of them, `[rows, blocks, outputs]`."""
        ones = np.ones((*features.shape[:2], 1))
        rows = np.concatenate([features, ones], axis=2, dtype=np.float64).transpose(1, 0, 2)
        wanted = outputs.astype(np.float64).transpose(1, 0, 2)
        self._gram += rows.transpose(0, 2, 1) @ rows
        self._cross += rows.transpose(0, 2, 1) @ wanted
        self._energy += np.square(wanted).sum((1, 2))
        self.rows += len(features)

    def __iter__(self) -> Iterator[NormalEquations]:
        """Those of each."""
        return (self.of(block) for block in range(len(self._gram)))

    def of(self, block: int) -> NormalEquations:
        """Those of one layer."""
        found = NormalEquations(self._gram.shape[1] - 1, self._cross.shape[2])
        found.gram, found.cross = self._gram[block], self._cross[block]
        found.energy, found.rows = float(self._energy[block]), self.rows
        return found


def both(one: NormalEquations, other: NormalEquations) -> NormalEquations:
    """The sums over the rows of both."""
    total = NormalEquations(len(one.gram) - 1, one.cross.shape[1])
    total.gram, total.cross = one.gram + other.gram, one.cross + other.cross
    total.energy, total.rows = one.energy + other.energy, one.rows + other.rows
    return total


def refitted(
    fitted: NormalEquations, held_out: NormalEquations, start: np.ndarray, *, constant_is_free: bool
) -> tuple[np.ndarray, float | None]:
    """
    Weights that fit better than `start` on rows that they were not fitted to, and their penalty; else `start` and None.

    The penalty is chosen on the rows held out; the weights are then fitted to all rows.

    Source: He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks, section 3.1, reconstructs a
    layer's outputs after pruning by least squares; here with a ridge towards the weights that were there.
    """
    solutions = {penalty: fitted.solved(start, penalty, constant_is_free=constant_is_free) for penalty in PENALTIES}
    errors = {penalty: held_out.error(solution) for penalty, solution in solutions.items()}
    best = min(errors, key=lambda penalty: errors[penalty])
    if not errors[best] < held_out.error(start):
        return start, None
    return both(fitted, held_out).solved(start, best, constant_is_free=constant_is_free), best
