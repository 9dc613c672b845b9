"""
Refitting a layer that runs along time to its states, by what its weights do to every later state of their unit.

A gate's sum moves the state of its unit in that step and, through what the unit carries on, in the steps behind it. To
first order in the weights, with z what the gate reads::

    trace[t] = F[t] · trace[t - 1] + a[t] · z[t]

`a` is what a step's states gain when the sum grows, `F` what they gain when the states before do, both as finite
differences of one step. The weights of a unit that bring its states closest to those wanted, all gates at once, are
then a least squares problem. Some such steps are taken, each from where the last one led, with the penalty that is best
on sequences held out, run with the weights themselves.

Source: Bellec et al. 2020, A solution to the learning dilemma for recurrent networks of spiking neurons: eligibility
traces, which leave out what goes through other units. Penalties as in Levenberg 1944 and Marquardt 1963.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.repairing.cells import OneStep, Sums, Weights, rows_of
from onnxprune.rules.facts import Recurrence

STEP = 1e-3
"""How far sums and states move for a finite difference: float32 shows it well."""


@dataclass(frozen=True)
class Run:
    """
    A batch as one direction runs it: inputs `x` [time, batch, inputs], the state `before` each step [time, batch,
    hidden], and the states that it starts from, `first` [carried, batch, hidden].
    """

    x: np.ndarray
    before: np.ndarray
    first: np.ndarray
    valid: np.ndarray
    backwards: bool

    def steps(self) -> Sequence[int]:
        """In the order in which they are run."""
        steps = range(len(self.x))
        return steps[::-1] if self.backwards else steps


class Equations:
    """For each unit the normal equations of its weights, of all gates that are `moved`."""

    def __init__(self, units: int, features: int) -> None:
        self.gram = np.zeros((units, features, features), np.float32)
        self.cross = np.zeros((units, features, 1), np.float32)

    def add(self, traces: np.ndarray, missing: np.ndarray) -> None:
        """Take in traces `[units, rows, features]` and what the states lack, `[rows, units]`."""
        turned = traces.transpose(0, 2, 1)
        self.gram += turned @ traces
        self.cross += turned @ missing.T[:, :, None].astype(np.float32)

    def plus(self, other: Equations) -> Equations:
        """Those of both."""
        found = Equations(*self.cross.shape[:2])
        found.gram, found.cross = self.gram + other.gram, self.cross + other.cross
        return found

    def solved(self, penalty: float) -> np.ndarray:
        """`[units, features]`; the penalty is in units of the traces' mean square."""
        found = np.zeros(self.cross.shape[:2])
        for unit, gram in enumerate(self.gram.astype(np.float64)):
            ridge = penalty * max(float(np.trace(gram)) / len(gram), 1e-30)
            found[unit] = np.linalg.solve(gram + ridge * np.eye(len(gram)), self.cross[unit, :, 0])
        return found


@dataclass(frozen=True)
class Traces:
    """What the weights of one direction do to its states."""

    step: OneStep
    fact: Recurrence
    direction: int
    weights: Weights

    @property
    def moved(self) -> tuple[int, ...]:
        """The gates whose weights may move: not one that scales states before they are mixed with other units'."""
        reset = self.fact.reset
        return tuple(gate for gate in range(self.fact.gates) if reset is None or reset.after or gate != reset.gate)

    @property
    def units(self) -> int:
        """How many there are."""
        return int(self.weights.of_state.shape[1])

    @property
    def features(self) -> int:
        """Weights of a unit."""
        return len(self.moved) * (int(self.weights.of_input.shape[1]) + self.units + 1)

    def of(self, run: Run) -> Iterator[tuple[int, np.ndarray]]:
        """Step by step the traces of the states, `[units, batch, features]`."""
        sums = Sums.of(self.weights, self.fact, run.x.astype(np.float64), run.before.astype(np.float64))
        totals = [sums.total(self.fact), *(sums.moved(self.fact, gate, STEP).total(self.fact) for gate in self.moved)]
        traces = np.zeros((len(run.first), self.units, run.x.shape[1], self.features), np.float32)
        states = run.first
        for time in run.steps():
            after, by_sums, by_states = self._differences([total[time] for total in totals], states)
            read = self._read(run.x[time], run.before[time], None if sums.r is None else sums.r[time])
            later = np.stack(
                [
                    np.concatenate([part[:, :, None] * z for part, z in zip(row, read, strict=True)], axis=2)
                    for row in by_sums
                ]
            )
            for state, row in enumerate(by_states):
                for part, one in zip(row, traces, strict=True):
                    later[state] += part[:, :, None] * one
            valid = run.valid[time]
            traces = np.where(valid[:, None], later, traces)
            states = np.where(valid[:, None], after, states)
            yield time, traces[0]

    def changed(self, by: np.ndarray) -> Weights:
        """The weights when those of each unit grow by `[units, features]`."""
        found = replace(self.weights, **{name: array.copy() for name, array in vars(self.weights).items()})
        inputs = found.of_input.shape[1]
        for gate, part in zip(self.moved, np.split(by, len(self.moved), axis=1), strict=True):
            rows = rows_of(gate, self.fact, len(found.bias))
            found.of_input[rows] += part[:, :inputs]
            found.of_state[rows] += part[:, inputs:-1]
            found.input_bias[rows] += part[:, -1]
        return found

    def _differences(
        self, totals: Sequence[np.ndarray], states: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states after a step, and their derivatives by gates' sums and by states: `[state, by, units, batch]`."""
        count, base = len(states), totals[0]
        shifts = STEP * np.eye(count)[:, :, None, None]
        sums = np.concatenate([*totals, *[base] * count])
        starts = [*[states] * len(totals), *(states + shift for shift in shifts)]
        found = self.step.of(self.direction, sums, np.concatenate(starts, axis=1))
        every = np.stack(np.split(found, len(totals) + count, axis=1), axis=1).transpose(0, 1, 3, 2)
        derivatives = (every[:, 1:] - every[:, :1]) / STEP
        after = every[:, 0].transpose(0, 2, 1)
        return after, derivatives[:, : len(totals) - 1], derivatives[:, len(totals) - 1 :]

    def _read(self, x: np.ndarray, before: np.ndarray, r: np.ndarray | None) -> list[np.ndarray]:
        """What each gate multiplies its weights with: `[units, batch, features]`, or the same for all, `[1, ...]`."""
        one = np.full((len(x), 1), float(self.fact.bias is not None))
        plain = np.concatenate([x, before, one], axis=1, dtype=np.float32)[None]
        reset = self.fact.reset
        if reset is None or r is None:
            return [plain] * len(self.moved)
        plain = np.repeat(plain, self.units, axis=0)
        scales = r.T[:, :, None] if reset.after else r[None]
        scaled = plain.copy()
        scaled[:, :, x.shape[1] : -1] *= scales.astype(np.float32)
        return [scaled if gate == reset.scaled else plain for gate in self.moved]
