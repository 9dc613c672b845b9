"""Fitting the gates of one direction to sums that they should see: least squares, a gate or a unit at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.repairing.cells import Weights, logistic, rows_of
from onnxprune.repairing.least_squares import PENALTIES, NormalEquations, refitted
from onnxprune.rules.facts import Recurrence

JOINT = 2**24
"""Largest sum of the sizes of normal equations for which each unit gets its own."""

JOINT_ROWS = 50
"""Rows for each feature that these are added up from, about: more tell little and cost much."""


@dataclass(frozen=True)
class Rows:
    """Steps of one batch: `x` and the state `h` that is read, and what the original's sums were, a row each."""

    held_out: bool
    x: np.ndarray
    h: np.ndarray
    of_input: np.ndarray
    of_state: np.ndarray
    r: np.ndarray | None = None

    def only(self, some: slice) -> Rows:
        """Some of them."""
        x, h, of_input, of_state = (array[some] for array in (self.x, self.h, self.of_input, self.of_state))
        return Rows(self.held_out, x, h, of_input, of_state, None if self.r is None else self.r[some])


@dataclass(frozen=True)
class Fit:
    """One direction's least squares problems."""

    fact: Recurrence
    rows: tuple[Rows, ...]
    bias_is_free: bool

    def weights(self, start: Weights) -> tuple[Weights, float]:
        """The weights that fit best, and the penalty of the ridge."""
        everything = np.arange(len(start.bias))
        reset = self.fact.reset
        if reset is None:
            return self.plain(start, everything, [row.h for row in self.rows])
        scaled = rows_of(reset.scaled, self.fact, len(everything))
        found, penalty = self.plain(start, np.setdiff1d(everything, scaled), [row.h for row in self.rows])
        r = self.resets(found)
        if not reset.after:
            states = [gate * row.h for gate, row in zip(r, self.rows, strict=True)]
            found, _ = self.plain(found, scaled, states)
        elif len(scaled) * self.features**2 <= JOINT:
            found = self.thinned().joint(found, scaled, [gate[:: self.every] for gate in r])
        else:
            found = self.apart(found, scaled)
        return found, penalty

    @property
    def features(self) -> int:
        """How many inputs and states a sum is over."""
        return int(self.rows[0].x.shape[1] + self.rows[0].h.shape[1])

    @property
    def every(self) -> int:
        """One row in so many is as good as all for the equations of a unit."""
        return max(1, sum(len(row.x) for row in self.rows) // (JOINT_ROWS * self.features))

    def thinned(self) -> Fit:
        """The same problems with these rows."""
        return replace(self, rows=tuple(row.only(slice(None, None, self.every)) for row in self.rows))

    def resets(self, weights: Weights) -> list[np.ndarray]:
        """What scales the state, under these weights."""
        assert self.fact.reset is not None
        gate = rows_of(self.fact.reset.gate, self.fact, len(weights.bias))
        sums = (row.x @ weights.of_input[gate].T + row.h @ weights.of_state[gate].T for row in self.rows)
        return [logistic(one + weights.bias[gate]) for one in sums]

    def plain(self, start: Weights, some: np.ndarray, states: Sequence[np.ndarray]) -> tuple[Weights, float]:
        """The weights with some rows fitted: their sums are over inputs and these states."""
        inputs = start.of_input.shape[1]
        matrix, penalty = self.solved(
            (np.hstack([row.x, state]) for row, state in zip(self.rows, states, strict=True)),
            ((row.of_input + row.of_state)[:, some] for row in self.rows),
            np.vstack([start.of_input[some].T, start.of_state[some].T, start.bias[some]]),
        )
        found = replaced(start, some, matrix[:inputs].T, matrix[inputs:-1].T, matrix[-1] - start.state_bias[some])
        return found, penalty

    def joint(self, start: Weights, some: np.ndarray, r: Sequence[np.ndarray]) -> Weights:
        """The weights with some rows fitted, a unit at a time, as r scales what the state adds to each."""
        inputs, found = start.of_input.shape[1], start
        for unit, row_number in enumerate(some):
            one = np.array([row_number])
            scales = [gate[:, unit : unit + 1] for gate in r]
            features = (np.hstack([row.x, s * row.h, s]) for row, s in zip(self.rows, scales, strict=True))
            both = (start.state_bias[one], start.input_bias[one])
            matrix, _ = self.solved(
                features if self.bias_is_free else (feature[:, :-1] for feature in features),
                (row.of_input[:, one] + unit_of(row.r, unit) * row.of_state[:, one] for row in self.rows),
                np.vstack([start.of_input[one].T, start.of_state[one].T, *(both if self.bias_is_free else both[1:])]),
            )
            of_state, *state_bias = np.split(matrix[inputs:-1].T, [start.of_state.shape[1]], axis=1)
            added = state_bias[0][0] if self.bias_is_free else None
            found = replaced(found, one, matrix[:inputs].T, of_state, matrix[-1], added)
        return found

    def apart(self, start: Weights, some: np.ndarray) -> Weights:
        """The weights with some rows fitted, what the input adds and what the state adds each by itself."""
        of_input, _ = self.solved(
            (row.x for row in self.rows),
            (row.of_input[:, some] for row in self.rows),
            np.vstack([start.of_input[some].T, start.input_bias[some]]),
        )
        of_state, _ = self.solved(
            (row.h for row in self.rows),
            (row.of_state[:, some] for row in self.rows),
            np.vstack([start.of_state[some].T, start.state_bias[some]]),
        )
        return replaced(start, some, of_input[:-1].T, of_state[:-1].T, of_input[-1], of_state[-1])

    def solved(
        self, features: Iterable[np.ndarray], wanted: Iterable[np.ndarray], start: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """The matrix that fits best, and its penalty; where that given fits as well, it, and the largest penalty."""
        fitted, held_out = (NormalEquations(len(start) - 1, start.shape[1]) for _ in range(2))
        for row, inputs, outputs in zip(self.rows, features, wanted, strict=True):
            (held_out if row.held_out else fitted).add(inputs, outputs)
        matrix, penalty = refitted(fitted, held_out, start, constant_is_free=self.bias_is_free)
        return matrix, max(PENALTIES) if penalty is None else penalty


def unit_of(r: np.ndarray | None, unit: int) -> np.ndarray:
    """What scales one unit, as a column."""
    assert r is not None
    return r[:, unit : unit + 1]


def replaced(
    weights: Weights,
    rows: np.ndarray,
    of_input: np.ndarray,
    of_state: np.ndarray,
    input_bias: np.ndarray,
    state_bias: np.ndarray | None = None,
) -> Weights:
    """The weights with other numbers in some rows."""
    new = replace(weights, **{name: array.copy() for name, array in vars(weights).items()})
    new.of_input[rows], new.of_state[rows], new.input_bias[rows] = of_input, of_state, input_bias
    if state_bias is not None:
        new.state_bias[rows] = state_bias
    return new
