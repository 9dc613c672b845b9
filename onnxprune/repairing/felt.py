"""
Fitting layers to what is felt of their outputs behind them, and not to all that they make.

    x ──► layer ──► p ──► f ──► felt        wanted: what f makes of the original's p

f bends, so this is no least squares problem, but near one: where the weights stand, errors of p count by the slope of f
there. The normal equations without f stay what turns errors of outputs into steps of weights, and a few such steps do.
Where f is flat but should not be (a rectifier that is shut and should be open), p is drawn to where it should be.

Sources: Zhang et al. 2016, Accelerating Very Deep Convolutional Networks for Classification and Detection, section
3.1.2, fit layers to what is behind the rectifier; He et al. 2017, Channel Pruning for Accelerating Very Deep Neural
Networks, section 3.3, to sums with another branch. The steps are Gauss 1809 and Newton's, by conjugate gradients of
Polak and Ribière 1969.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.repairing.least_squares import Blocks, NormalEquations, both

STEPS = 12
"""Steps that are taken at most; how many, is chosen on rows held out."""

PATIENCE = 3
"""After so many steps that bring nothing there is no further one."""

USUAL_PENALTY = 1e-2
"""Of a block for which no other is better than none."""

NEAR = 1e-3
"""How far an output moves for a finite difference, in units of its root mean square."""

Effect = Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]
"""What is behind a layer: from rows `[rows, outputs]` of its outputs and of what else is given to what is felt."""


@dataclass(frozen=True)
class Rows:
    """
    Some rows of one layer, or of many side by side.

    `features` `[blocks, rows, features + 1]`, the constant last, `made` by the original's layer of its own inputs and
    `felt` of that, both `[rows, blocks * outputs]`, as is each tensor `given` behind the layer in the model as it is.
    """

    features: np.ndarray
    made: np.ndarray
    felt: np.ndarray
    given: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Start:
    """
    Where the steps start: `weights` `[blocks, features + 1, outputs]`, found without what is behind, with the ridge
    `[blocks, features + 1]` towards `anchor`; `inverse` is that of the normal equations with the ridge.
    """

    weights: np.ndarray
    anchor: np.ndarray
    ridge: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(
        cls,
        equations: Sequence[NormalEquations],
        anchor: np.ndarray,
        penalties: Sequence[float | None],
        constant_is_free: bool,
        rows: int,
    ) -> Start:
        """Where to start with so many rows; a block without a penalty starts at its anchor."""
        found = []
        for one, there, penalty in zip(equations, anchor, penalties, strict=True):
            ridge = one.ridge(USUAL_PENALTY if penalty is None else penalty, constant_is_free=constant_is_free)
            inverse = np.linalg.inv(one.gram + np.diag(ridge))
            weights = there if penalty is None else there + inverse @ (one.cross - one.gram @ there)
            found.append((weights, ridge * (rows / one.rows), inverse * (one.rows / rows)))
        weights, ridge, inverse = (np.stack(parts) for parts in zip(*found, strict=True))
        return cls(weights, anchor, ridge, inverse)


class Task:
    """What is felt of some rows, and how errors of it pull at what the layer makes."""

    def __init__(self, rows: Rows, effect: Effect) -> None:
        self._rows, self._effect = rows, effect
        spread = np.sqrt(np.square(rows.made, dtype=np.float64).mean(0)) * NEAR
        self._near = np.maximum(spread, 1e-6 * max(float(spread.max(initial=0)), 1e-30)).astype(rows.made.dtype)
        made, felt, slope = rows.made, *self._felt(rows.made)
        with np.errstate(all="ignore"):
            shift = (rows.felt - felt) / slope
        self._wanted = made + np.where(np.isfinite(shift), shift, 0)
        _, self._slope = self._felt(self._wanted)

    @property
    def bends(self) -> bool:
        """Is anything felt other than in proportion?"""
        return bool(self._rows.given) or not np.allclose(self._slope, self._slope[:1], rtol=1e-2)

    def made(self, weights: np.ndarray) -> np.ndarray:
        """What the layer makes with these weights, `[rows, blocks * outputs]`."""
        return joined(self._rows.features @ weights.astype(self._rows.features.dtype))

    def error(self, weights: np.ndarray) -> float:
        """The squared error of what is felt with these weights; infinite where that is no number."""
        apart = self._effect(self.made(weights), self._rows.given) - self._rows.felt
        found = float(np.square(apart, dtype=np.float64).sum())
        return found if np.isfinite(found) else float("inf")

    def pull(self, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How each number is drawn, and how strongly it is held to where that leads."""
        felt, slope = self._felt(made)
        steep = np.abs(self._slope)
        held = steep * np.maximum(steep - np.abs(slope), 0)
        return (self._rows.felt - felt) * slope + held * (self._wanted - made), np.square(slope) + held

    def steps(self, start: Start, count: int) -> Iterator[np.ndarray]:
        """The weights after each of so many steps."""
        x = self._rows.features
        weights, made = start.weights.copy(), self.made(start.weights)
        direction = before = np.zeros_like(weights)
        last = np.ones((len(x), 1, weights.shape[2]))
        for number in range(count):
            pull, held = (parted(part, len(x)) for part in self.pull(made))
            if not number:
                ridge = start.ridge[:, :, None] * held.mean(1, dtype=np.float64)[:, None]
            gain = x.transpose(0, 2, 1) @ pull - ridge * (weights - start.anchor)
            eased = start.inverse @ gain
            share = np.maximum(along(eased, gain - before), 0) / np.maximum(last, 1e-300) if number else 0
            direction, before, last = eased + share * direction, gain, along(eased, gain)
            moved = x @ direction.astype(x.dtype)
            curvature = along(held * moved, moved) + along(ridge * direction, direction)
            length = along(gain, direction) / np.maximum(curvature, 1e-300)
            weights = weights + length * direction
            made = made + joined(length.astype(x.dtype) * moved)
            yield weights

    def _felt(self, made: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is felt, and how much more when more is made."""
        felt = self._effect(made, self._rows.given)
        return felt, (self._effect(made + self._near, self._rows.given) - felt) / self._near


def along(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Products summed over the middle axis, `[blocks, 1, outputs]`."""
    return np.asarray((one * other).sum(1, keepdims=True, dtype=np.float64))


def joined(blocks: np.ndarray) -> np.ndarray:
    """`[blocks, rows, outputs]` as `[rows, blocks * outputs]`."""
    return blocks.transpose(1, 0, 2).reshape(blocks.shape[1], -1)


def parted(rows: np.ndarray, blocks: int) -> np.ndarray:
    """The other way round."""
    return rows.reshape(len(rows), blocks, -1).transpose(1, 0, 2)


class Noted:
    """Rows of a layer that are kept to fit it to what is felt: those to fit to, and those held out."""

    def __init__(self, effect: Effect, most_a_sample: int) -> None:
        self._effect, self.most_a_sample = effect, most_a_sample
        self._parts: tuple[list[Rows], list[Rows]] = ([], [])

    def add(self, rows: Rows, *, held_out: bool) -> None:
        """Keep rows of a batch."""
        self._parts[held_out].append(rows)

    def better(
        self,
        blocks: tuple[Blocks, Blocks],
        anchor: np.ndarray,
        penalties: Sequence[float | None],
        *,
        constant_is_free: bool,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """
        The weights `[blocks, features + 1, outputs]` of which what is felt comes closest, on rows held out, and the
        squared errors before and after there and the energy of what is wanted; None where nothing bends.

        `blocks` are the normal equations without it, on most samples and on those held out. Each block has its penalty
        for them, with which its weights are drawn to the `anchor`; None where it is better off without them.
        """
        fitted, held_out = (together(parts) for parts in self._parts)
        learner, judge = Task(fitted, self._effect), Task(held_out, self._effect)
        if not learner.bends:
            return None
        energy = float(np.square(held_out.felt, dtype=np.float64).sum())
        with np.errstate(all="ignore"):  # steps may lead out of all bounds, and are not taken then
            first = Start.of(list(blocks[0]), anchor, penalties, constant_is_free, len(fitted.made))
            tried = [anchor, first.weights]
            errors = [judge.error(weights) for weights in tried]
            for weights in learner.steps(first, STEPS):
                tried.append(weights)
                errors.append(judge.error(weights))
                if min(errors[-PATIENCE:]) > min(errors):
                    break
            chosen = int(np.argmin(errors))
            if not chosen:
                return anchor, np.array([errors[0], errors[0], energy])
            every = together([fitted, held_out])
            equations = [both(*pair) for pair in zip(*blocks, strict=True)]
            start = Start.of(equations, anchor, penalties, constant_is_free, len(every.made))
            *_, best = (start.weights, *Task(every, self._effect).steps(start, chosen - 1))
        if not judge.error(best) < errors[0]:
            best = tried[chosen]
        return best, np.array([errors[0], errors[chosen], energy])


def together(parts: Sequence[Rows]) -> Rows:
    """All rows of them."""
    given = zip(*(part.given for part in parts), strict=True)
    return Rows(
        np.concatenate([part.features for part in parts], axis=1),
        np.concatenate([part.made for part in parts]),
        np.concatenate([part.felt for part in parts]),
        tuple(np.concatenate(one) for one in given),
    )
