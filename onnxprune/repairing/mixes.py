"""
Mixes of known columns whose products come closest to wanted ones.

    wanted  q · kᵀ          sought  N and M  for which  (x N) · (z M)ᵀ  comes close to it

`x` and `z` are known columns, more of them than N and M make; the last of each is the constant 1. With one of the two
held, the other is a linear least squares problem, so they are solved in turn. All that is needed of the data are Gram
matrices, one for each matrix of logits. Each half is solved by conjugate gradients, preconditioned as if the two sides
varied independently of each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = (1e-8, 1e-6, 1e-4, 1e-2)
"""Ridge penalties that are tried, in units of the mean square of what is multiplied with a mix."""

SWEEPS = 5
"""How often both sides are solved."""

MOST_ITERATIONS = 20
"""Of conjugate gradients."""

ENOUGH = 1e-8
"""Of the first residual's energy, at which conjugate gradients stop."""

Pair = tuple[np.ndarray, np.ndarray]
"""Something of the left side and the same of the right."""

Mixes = tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]
"""For each side, a mix for each of its blocks: `[columns + 1, width]`."""


@dataclass(frozen=True)
class Meeting:
    """
    All samples in which one block of the left side meets one of the right.

    `grams` are those of x and of z, `[samples, columns + 1, columns + 1]`; `cross` is the sum of xᵀ q kᵀ z. `energy` is
    that of what is wanted, `before` the squared error of what is made now.
    """

    blocks: tuple[int, int]
    grams: Pair
    cross: np.ndarray
    energy: float
    before: float

    @classmethod
    def of(cls, blocks: tuple[int, int], known: Pair, wanted: Pair, made: Pair) -> Meeting:
        """What is known, wanted and made now of some samples, `[samples, rows, ...]` each."""
        (x, z), (q, k), (q_now, k_now) = ([one.astype(np.float64) for one in pair] for pair in (known, wanted, made))
        energy = product_of_sums(times(q, q), times(k, k))
        both = product_of_sums(times(q, q_now), times(k, k_now))
        squared = product_of_sums(times(q_now, q_now), times(k_now, k_now))
        cross = (times(x, q) @ times(k, z)).sum(0)
        return cls(blocks, (times(x, x), times(z, z)), cross, energy, energy - 2 * both + squared)

    def error(self, mixes: Mixes) -> float:
        """The squared error of what the mixes make."""
        n, m = self.mixes(mixes)
        squared = product_of_sums(mixed(self.grams[0], n), mixed(self.grams[1], m))
        return self.energy - 2 * product_of_sums(self.cross, n @ m.T) + squared

    def mixes(self, mixes: Mixes) -> Pair:
        """Those of its two blocks."""
        return mixes[0][self.blocks[0]], mixes[1][self.blocks[1]]

    @property
    def is_finite(self) -> bool:
        """Is it free of overflows?"""
        return all(bool(np.isfinite(part).all()) for part in (*self.grams, self.cross, self.before))


def times(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The products of two stacks of matrices, the first transposed."""
    return np.asarray(left.transpose(0, 2, 1) @ right)


def product_of_sums(one: np.ndarray, other: np.ndarray) -> float:
    """The sum over all elements of their products."""
    return float((one * other).sum())


def mixed(grams: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Gram matrices of the mixed columns."""
    return np.asarray(mix.T @ grams @ mix)


def joined(meetings: Sequence[Meeting]) -> Meeting:
    """Meetings of the same blocks as one, with the samples of all."""
    left, right = (np.concatenate([one.grams[side] for one in meetings]) for side in (0, 1))
    cross = np.sum([one.cross for one in meetings], axis=0)
    energy, before = (sum(numbers) for numbers in zip(*((one.energy, one.before) for one in meetings), strict=True))
    return Meeting(meetings[0].blocks, (left, right), cross, energy, before)


def error_now(meetings: Sequence[Meeting]) -> float:
    """Squared error of what is made now, over the energy of what is wanted."""
    return max(sum(one.before for one in meetings), 0.0) / max(sum(one.energy for one in meetings), 1e-30)


def error_of(mixes: Mixes, meetings: Sequence[Meeting]) -> float:
    """The same of what the mixes make."""
    return max(sum(one.error(mixes) for one in meetings), 0.0) / max(sum(one.energy for one in meetings), 1e-30)


def best_mixes(
    fitted: Sequence[Meeting], held_out: Sequence[Meeting], start: Mixes, constants: tuple[bool, bool]
) -> tuple[Mixes, float | None]:
    """
    Mixes that fit better than what is made now on samples that they were not fitted to, and their penalty.

    Where there are none, `start` and None. `constants` tells of each side whether what is mixed of the constant may
    change. The penalty is chosen on the samples held out, after one sweep; the mixes are then fitted to all samples.
    """
    errors = {penalty: error_of(solved(fitted, start, penalty, constants, 1), held_out) for penalty in PENALTIES}
    best = min(errors, key=lambda penalty: errors[penalty])
    if not errors[best] < error_now(held_out):
        return start, None
    every = [joined(both) for both in zip(fitted, held_out, strict=True)]
    return solved(every, start, best, constants, SWEEPS), best


def solved(
    meetings: Sequence[Meeting], start: Mixes, penalty: float, constants: tuple[bool, bool], sweeps: int
) -> Mixes:
    """The mixes after some sweeps, each of which solves the right side and then the left."""
    left, right = start
    for _ in range(sweeps):
        right = tuple(side_solved(meetings, (left, right), 1, penalty, constants[1]))
        left = tuple(side_solved(meetings, (left, right), 0, penalty, constants[0]))
    return left, right


def side_solved(
    meetings: Sequence[Meeting], mixes: Mixes, side: int, penalty: float, constant_is_free: bool
) -> Iterator[np.ndarray]:
    """The best mix of each block of one side, while those of the other are held."""
    for block, start in enumerate(mixes[side]):
        met = [(one, one.mixes(mixes)[1 - side]) for one in meetings if one.blocks[side] == block]
        own = np.concatenate([one.grams[side] for one, _ in met])
        other = np.concatenate([mixed(one.grams[1 - side], mix) for one, mix in met])
        wanted = np.sum([(one.cross.T if side else one.cross) @ mix for one, mix in met], axis=0)
        rows = len(start) - (not constant_is_free)
        missing = wanted - weighed(own, start, other)
        step = conjugate_gradients(own[:, :rows, :rows], other, missing[:rows], penalty)
        yield start + np.pad(step, ((0, len(start) - rows), (0, 0)))


def weighed(own: np.ndarray, mix: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum over samples of  own · mix · other."""
    return np.asarray((own @ mix @ other).sum(0))


def conjugate_gradients(own: np.ndarray, other: np.ndarray, wanted: np.ndarray, penalty: float) -> np.ndarray:
    """The mix that  own · mix · other  summed over samples makes what is wanted of, but for a ridge penalty."""
    (a, turn), (b, other_turn) = (np.linalg.eigh(grams.mean(0)) for grams in (own, other))
    ridge = penalty * len(own) * max(float(a.mean() * b.mean()), 1e-30)
    curvature = len(own) * np.outer(np.maximum(a, 0), np.maximum(b, 0)) + ridge
    found, direction, residual = np.zeros_like(wanted), np.zeros_like(wanted), wanted
    energies: list[float] = []
    for _ in range(MOST_ITERATIONS):
        better = turn @ ((turn.T @ residual @ other_turn) / curvature) @ other_turn.T
        energies.append(product_of_sums(residual, better))
        if energies[-1] <= ENOUGH * energies[0]:
            break
        direction = better + (energies[-1] / energies[-2] * direction if len(energies) > 1 else 0)
        change = weighed(own, direction, other) + ridge * direction
        length = energies[-1] / product_of_sums(direction, change)
        found, residual = found + length * direction, residual - length * change
    return found
