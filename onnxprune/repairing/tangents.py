"""
Refitting a layer that runs along time to its states, by what its weights do to every later state.

A gate's sum moves the state of its unit in that step; what the unit carries on, and what other units hear of it, moves
the states behind. To first order in the weights, with z what the gates read and s their sums::

    ds[t] = dW · z[t] + R · dh[t - 1]            dstate[t] = A[t] · ds[t] + F[t] · dstate[t - 1]

`A` is what a step's states gain when the sums grow, `F` what they gain when the states before do, both as finite
differences of one step. Backwards through the same equations goes what states lack. So the weights that bring the
states closest to those wanted, all gates and units at once, are a least squares problem that conjugate gradients solve
without ever writing it down. Some such steps are taken, each from where the last one led; how far, is chosen on
sequences held out, run with the weights themselves.

Sources: Williams and Zipser 1989, A Learning Algorithm for Continually Running Fully Recurrent Neural Networks, for the
first equations; Werbos 1990, Backpropagation Through Time, for the way back; Martens and Sutskever 2011, Learning
Recurrent Neural Networks with Hessian-Free Optimization, for conjugate gradients on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.repairing.cells import OneStep, Sums, Weights, rows_of
from onnxprune.rules.facts import Recurrence

NEAR = 1e-3
"""How far sums and states move for a finite difference: float32 shows it well."""

RIDGE = 1e-3
"""Of the steps, in units of what the weights do to the states."""

ITERATIONS = 12
"""Of conjugate gradients, for each step."""


@dataclass(frozen=True)
class Run:
    """
    A batch as one direction runs it: inputs `x` [time, batch, inputs], the state `before` each step [time, batch,
    hidden], the states that it starts from, `first` [carried, batch, hidden], and what its states lack, `missing`
    [time, batch, hidden]. Steps are counted in the order in which they are run; some are not `valid` [time, batch].
    """

    x: np.ndarray
    before: np.ndarray
    first: np.ndarray
    missing: np.ndarray
    valid: np.ndarray


def of_one_length(runs: Sequence[Run]) -> list[Run]:
    """The runs, the shorter ones with steps at their end that are not valid."""
    longest = max(len(run.x) for run in runs)

    def longer(steps: np.ndarray) -> np.ndarray:
        return np.concatenate([steps, np.zeros((longest - len(steps), *steps.shape[1:]), steps.dtype)])

    return [Run(longer(run.x), longer(run.before), run.first, longer(run.missing), longer(run.valid)) for run in runs]


TIME_AND_BATCH = ((0, 1), (0, 1))
"""The axes that sums over all steps of all runs go along."""


class Tangents:
    """
    What small changes of one direction's weights do to its states in some runs, all of the same length.

    Changes are `[rows, inputs + hidden + 2]`: of the weights, and of what is added to what comes of inputs and states.
    """

    def __init__(self, step: OneStep, fact: Recurrence, direction: int, weights: Weights, runs: Sequence[Run]) -> None:
        self.weights, self._fact = weights, fact
        parts = [self._slopes(step, direction, run) for run in runs]
        self._by_sums, self._by_states = (np.concatenate(part, axis=-2) for part in zip(*parts, strict=True))
        self._x, self._before, self.missing, valid = (
            np.concatenate([getattr(run, name) for run in runs], axis=1) for name in ("x", "before", "missing", "valid")
        )
        self._valid, self._recurrent = valid[..., None], weights.of_state.astype(np.float32)
        r = Sums.of(weights, fact, self._x, self._before).r
        self._r = np.zeros_like(self._before) if r is None else r.astype(np.float32)
        self._by_reset = self._before * self._r * (1 - self._r)
        reset, rows, none = fact.reset, len(self._recurrent), np.arange(0)
        scaled = none if reset is None else rows_of(reset.scaled, fact, rows)
        after = reset is not None and reset.after
        self._late: np.ndarray = scaled if after else none
        self._early: np.ndarray = none if after else scaled
        self._resetting = none if reset is None else rows_of(reset.gate, fact, rows)
        self.allowed = np.ones((rows, self._x.shape[2] + self._before.shape[2] + 2))
        self.allowed[:, -2:] = fact.bias is not None
        self.allowed[np.setdiff1d(np.arange(rows), self._late), -1] = 0

    def path(self) -> Iterator[Weights]:
        """Weights that bring the states closer to those wanted, each a little further than the one before."""
        ease, ridge = self._preconditioner()
        found = np.zeros_like(self.allowed)
        rest = self.backward(self.missing)
        direction = eased = ease(rest)
        for _ in range(ITERATIONS):
            done = self.backward(self.forward(direction)) + ridge * direction
            length = (rest * eased).sum() / max((direction * done).sum(), 1e-300)
            found = found + length * direction
            yield self.changed(found)
            left = rest - length * done
            following = ease(left)
            share = (left * following).sum() / max((rest * eased).sum(), 1e-300)
            direction, rest, eased = following + share * direction, left, following

    def changed(self, by: np.ndarray) -> Weights:
        """The weights when they grow by so much."""
        inputs, one = self._x.shape[2], self.weights
        of_input, of_state = one.of_input + by[:, :inputs], one.of_state + by[:, inputs:-2]
        return Weights(of_input, of_state, one.input_bias + by[:, -2], one.state_bias + by[:, -1])

    def forward(self, by: np.ndarray) -> np.ndarray:
        """By how much the states `[time, batch, hidden]` grow when the weights do."""
        inputs, change = self._x.shape[2], by.astype(np.float32)
        of_input, of_state, (input_bias, state_bias) = change[:, :inputs], change[:, inputs:-2], change[:, -2:].T
        sums = self._x @ of_input.T + input_bias + self._heard(self._before, of_state, self._r)
        sums[..., self._late] += self._r * state_bias[self._late] if len(self._late) else 0
        grown = np.zeros((self._by_sums.shape[1], *self._before.shape[1:]), np.float32)
        found = np.zeros_like(self._before)
        for time in range(len(found)):
            sums[time] += self._heard(grown[0], self._recurrent, self._r[time])
            if len(self._early):
                opened = self._by_reset[time] * sums[time][:, self._resetting]
                sums[time][:, self._early] += opened @ self._recurrent[self._early].T
            gates = sums[time].reshape(len(sums[time]), self._fact.gates, -1).transpose(1, 0, 2)
            after = (self._by_sums[time] * gates).sum(1) + (self._by_states[time] * grown).sum(1)
            grown = np.where(self._valid[time], after, grown)
            found[time] = grown[0]
        return np.asarray(found * self._valid)

    def backward(self, missing: np.ndarray) -> np.ndarray:
        """The other way round: what weights gain, summed over all states, when states count by these numbers."""
        sums = self.pulls(missing)
        faded = self._faded(sums, self._r)
        heard = np.tensordot(faded, self._before, TIME_AND_BATCH)
        heard[self._early] = np.tensordot(sums[..., self._early], self._r * self._before, TIME_AND_BATCH)
        inputs, biases = np.tensordot(sums, self._x, TIME_AND_BATCH), [sums.sum((0, 1)), faded.sum((0, 1))]
        found = np.concatenate([inputs, heard, np.stack(biases, axis=1)], axis=1, dtype=np.float64)
        return np.asarray(found * self.allowed)

    def pulls(self, missing: np.ndarray) -> np.ndarray:
        """The same for the sums of all rows, `[time, batch, rows]`."""
        found = np.zeros((*missing.shape[:2], len(self._recurrent)), np.float32)
        pull = np.zeros((self._by_sums.shape[1], *missing.shape[1:]), np.float32)
        for time in reversed(range(len(missing))):
            pull[0] += missing[time] * self._valid[time]
            gates = (self._by_sums[time] * pull[:, None]).sum(0)
            sums = gates.transpose(1, 0, 2).reshape(len(self._valid[time]), -1)
            before = (self._by_states[time] * pull[:, None]).sum(0)
            if len(self._early):
                opened = sums[:, self._early] @ self._recurrent[self._early]
                sums[:, self._resetting] += self._by_reset[time] * opened
                before[0] += self._r[time] * opened
            faded = self._faded(sums, self._r[time])
            faded[:, self._early] = 0
            before[0] += faded @ self._recurrent
            pull = np.where(self._valid[time], before, pull)
            found[time] = sums * self._valid[time]
        return found

    def _heard(self, states: np.ndarray, of_state: np.ndarray, r: np.ndarray) -> np.ndarray:
        """What weights of states add to the sums."""
        found = self._faded(states @ of_state.T, r)
        if len(self._early):
            found[..., self._early] = (r * states) @ of_state[self._early].T
        return found

    def _faded(self, sums: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Sums over states as they are once r has scaled those of the gate that it scales."""
        found = sums.copy()
        if len(self._late):
            found[..., self._late] *= r
        return found

    def _slopes(self, step: OneStep, direction: int, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """What a step's states gain when the sums of each gate grow, and when each of the states before does."""
        fact, (time, batch, units), count = self._fact, run.before.shape, len(run.first)
        sums = Sums.of(self.weights, fact, run.x.astype(np.float64), run.before.astype(np.float64))
        totals = [sums.total(fact), *(sums.moved(fact, gate, NEAR).total(fact) for gate in range(fact.gates))]
        slopes = np.zeros((time, count, fact.gates + count, batch, units), np.float32)
        shifts, states = NEAR * np.eye(count)[:, :, None, None], run.first
        for number in range(time):
            at = [total[number] for total in totals]
            starts = [*[states] * len(at), *(states + shift for shift in shifts)]
            found = step.of(direction, np.concatenate([*at, *[at[0]] * count]), np.concatenate(starts, axis=1))
            every = found.reshape(count, 1 + fact.gates + count, batch, units)
            slopes[number] = (every[:, 1:] - every[:, :1]) / NEAR
            states = np.where(run.valid[number][:, None], every[:, 0], states)
        return slopes[:, :, : fact.gates], slopes[:, :, fact.gates :]

    def _preconditioner(self) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
        """
        An easier problem's solution, and the ridge.

        The easier problem: units and gates move the states by themselves, each always by the same; by how much, shows
        when random signs go back through the equations.
        """
        signs = np.random.default_rng(0).choice((np.float32(-1), np.float32(1)), self._before.shape)
        scale = np.square(self.pulls(signs), dtype=np.float64).sum((0, 1))
        scale = np.maximum(scale, 1e-6 * max(float(scale.max()), 1e-30))[:, None]
        ones = np.full((*self._x.shape[:2], 1), self.allowed[0, -2])
        read = np.concatenate([self._x, self._before, ones], axis=2)[self._valid[..., 0]]
        gram = read.T @ read / len(read)
        ridge = RIDGE * max(float(np.trace(gram)) / len(gram), 1e-30)
        inverse = np.linalg.inv(gram.astype(np.float64) + ridge * np.eye(len(gram)))

        def ease(rest: np.ndarray) -> np.ndarray:
            eased = np.concatenate([rest[:, :-1] @ inverse, rest[:, -1:]], axis=1)
            return np.asarray(eased / scale * self.allowed)

        return ease, ridge * scale
