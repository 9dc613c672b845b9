"""
Refitting a layer that runs along time, so that its gates see the sums that they saw in the original.

The sums are linear in the input and in the state one step before, so the weights for given ones are a least squares
problem. Which states, when those of the pruned layer depend on the weights? First the original's, of the units that
stay; then twice the pruned layer's own under the weights found last, so that they answer to their own errors. Each
direction keeps whichever weights bring its states closest to the original's on samples held out.

Then they are fitted to the states themselves (`tangents`), unless that would take too long. Where there are few
weights, there are more sequences to learn from than samples: the original says of any input what should come of it, so
mixes of two will do.

Sources: Ross, Gordon and Bagnell 2011, A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
Learning: learn on the states that the learner itself comes to; Zhang et al. 2018, mixup: Beyond Empirical Risk
Minimization, for the mixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_in_main
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import PRECISE_TYPES, Node
from onnxprune.repairing.cells import Cell, OneStep, Stored, Sums, Weights
from onnxprune.repairing.gate_fit import Fit, Rows
from onnxprune.repairing.passages import Passage, Teacher, firsts, passages_of, remembered, states_before
from onnxprune.repairing.rows import ROWS_A_SAMPLE
from onnxprune.repairing.steps import Refit, Repaired
from onnxprune.repairing.tangents import ITERATIONS, RIDGE, Run, Tangents, of_one_length
from onnxprune.rules.axes import Axis, Dim, kept_positions, leaves
from onnxprune.rules.facts import Recurrence

OWN_PASSES = 2
"""How often the weights are fitted to the states that they lead to themselves."""

STATE_PASSES = 4
"""How often the weights then take a step towards the states that are wanted, where that does not take too long."""

MIXES = 2
"""So many more batches are learned from for each, of sequences mixed two by two, where there are few weights."""

SMALL = 2**24
"""Sum of the squares of the units' weights up to which there are few."""

MOST_WORK = 2e12
"""Multiplications that steps towards the states may take, about."""


@dataclass(frozen=True)
class RecurrentStep:
    """One such layer."""

    couplings: Couplings
    node: Node
    fact: Recurrence
    rows: Axis
    units: Axis
    inputs: Axis

    @property
    def position(self) -> int:
        """Of its node in the graph."""
        return self.node.position

    @property
    def reads(self) -> frozenset[Dim]:
        """The Dims that it sums over: input channels, and its own units."""
        return frozenset((*leaves(self.inputs), *leaves(self.units)))

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give the layer the weights that fit best."""
        original = self.couplings.graph.model
        output = next(name for name in self.node.outputs if name)
        stored = Stored(model, output, self.fact)
        if not stored.can_change:
            return
        teacher = Teacher(
            Stored(original, output, self.fact),
            original,
            self.fact,
            kept_positions(self.rows, kept),
            kept_positions(self.units, kept),
        )
        mixes = MIXES if all(is_small(weights, self.fact) for weights in stored.directions()) else 0
        sources = (None, *(np.random.default_rng(number) for number in range(mixes)))
        batches = (passages_of(teacher, stored, model, samples, threads or 1, mixing) for mixing in sources)
        passages = tuple(remembered(chain.from_iterable(batches)))
        if {passage.held_out for passage in passages} != {True, False}:
            return
        yield refit(Student(Cell(stored, model, self.fact), self.fact, passages), stored, model)


def recurrent_steps(couplings: Couplings) -> Iterator[RecurrentStep]:
    """Every layer of the model that runs along time and has constant weights."""
    axes, graph = couplings.typing.axes, couplings.graph
    for op, fact in facts_in_main(couplings.typing, Recurrence):
        weight, recurrent, x = op.input(fact.weight), op.input(fact.recurrent), op.input(fact.x)
        if graph.element_types.get(x.name) in PRECISE_TYPES:
            yield RecurrentStep(couplings, op.node, fact, axes(weight)[1], axes(recurrent)[2], axes(x)[2])


@dataclass(frozen=True)
class Student:
    """The pruned layer, and the batches that it learns from."""

    cell: Cell
    fact: Recurrence
    passages: tuple[Passage, ...]

    def errors(self, directions: Sequence[Weights]) -> np.ndarray:
        """For each direction the squared error of its states, on what is held out, and the energy of those wanted."""
        found = np.zeros((len(directions), 2))
        for passage in self.passages:
            if passage.held_out:
                valid = passage.valid[..., None]
                apart = self.cell.states(passage.feed, directions) - passage.states
                found += np.stack([(np.square(part) * valid).sum((1, 2, 3)) for part in (apart, passage.states)], 1)
        return found

    def work(self, directions: Sequence[Weights]) -> float:
        """Multiplications that steps towards the states take, about."""
        steps = sum(passage.valid.size for passage in self.passages)
        weights = sum(one.of_input.size + one.of_state.size for one in directions)
        return 4.0 * STATE_PASSES * ITERATIONS * steps * weights

    def tangents(
        self, directions: Sequence[Weights], direction: int, step: OneStep, *, held_out: bool | None = None
    ) -> Tangents:
        """What small changes of a direction's weights do; in the batches held out, in the others, or in all."""
        runs = []
        for passage in self.passages:
            if held_out not in (None, passage.held_out):
                continue
            states = self.cell.states(passage.feed, directions)
            before = states_before(states, passage.feed, self.fact)
            in_order = slice(None, None, -1 if self.fact.backwards[direction] else 1)
            missing = (passage.states - states)[direction] * passage.valid[..., None]
            runs.append(
                Run(
                    x=passage.feed[self.fact.x][in_order],
                    before=before[direction][in_order],
                    first=firsts(passage.feed, self.fact, before)[:, direction],
                    missing=missing[in_order],
                    valid=passage.valid[in_order],
                )
            )
        return Tangents(step, self.fact, direction, directions[direction], of_one_length(runs))

    def rows(self, directions: Sequence[Weights], direction: int, *, own: bool) -> Iterator[Rows]:
        """What a direction learns from: random steps, from its own states or from the original's."""
        rng = np.random.default_rng(0)
        for passage in self.passages:
            before = passage.before
            if own:
                before = states_before(self.cell.states(passage.feed, directions), passage.feed, self.fact)
            steps = np.flatnonzero(passage.valid)
            some = rng.permutation(steps)[: ROWS_A_SAMPLE * passage.valid.shape[1]]
            arrays = (passage.feed[self.fact.x], before[direction], *parts(passage.sums[direction]))
            yield Rows(passage.held_out, *(array.reshape(-1, array.shape[-1])[some] for array in arrays))


def parts(sums: Sums) -> tuple[np.ndarray, ...]:
    """Its arrays."""
    return (sums.of_input, sums.of_state) if sums.r is None else (sums.of_input, sums.of_state, sums.r)


class Best:
    """The best weights of each direction so far: those of the smallest error on what is held out."""

    def __init__(self, student: Student, directions: Sequence[Weights]) -> None:
        self._student = student
        self.weights, self.penalties = list(directions), dict[int, float]()
        self.first = self.errors = student.errors(directions)

    def offer(self, learned: Sequence[tuple[Weights, float]]) -> list[int]:
        """Take weights, each with its penalty, for the directions where they are better; those directions."""
        errors = self._student.errors([weights for weights, _ in learned])
        better: list[int] = np.flatnonzero(errors[:, 0] < self.errors[:, 0]).tolist()
        for number in better:
            self.weights[number], self.penalties[number] = learned[number]
        self.errors = np.where(errors[:, :1] < self.errors[:, :1], errors, self.errors)
        return better


def refit(student: Student, stored: Stored, model: ModelProto) -> Refit:
    """Store the best weights that were found for each direction: what that brought, and which constants changed."""
    free = student.fact.bias is not None
    best = Best(student, stored.directions())
    directions = tuple(best.weights)
    for attempt in range(1 + OWN_PASSES):
        learned = [
            Fit(student.fact, tuple(student.rows(directions, number, own=attempt > 0)), free).weights(weights)
            for number, weights in enumerate(directions)
        ]
        directions = tuple(weights for weights, _ in learned)
        best.offer(learned)
    if best.penalties and student.work(best.weights) <= MOST_WORK:
        approach(student, best, OneStep(stored, model, student.fact))
    before, after = (float(errors[:, 0].sum() / max(errors[:, 1].sum(), 1e-30)) for errors in (best.first, best.errors))
    constants = stored.put(best.weights) if best.penalties else ()
    return Refit(Repaired(stored.node.name, before, after, max(best.penalties.values(), default=None)), constants)


def is_small(weights: Weights, fact: Recurrence) -> bool:
    """Are there few enough weights for equations of all those of each unit?"""
    inputs, units = weights.of_input.shape[1], weights.of_state.shape[1]
    return bool(units * (fact.gates * (inputs + units + 1)) ** 2 <= SMALL)


def approach(student: Student, best: Best, step: OneStep) -> None:
    """Bring the states closer by steps of all weights at once."""
    for _ in range(STATE_PASSES):
        start, chosen = list(best.weights), dict[int, int]()
        paths = [student.tangents(start, number, step, held_out=False).path() for number in range(len(start))]
        for far, reached in enumerate(zip(*paths, strict=True)):
            chosen |= dict.fromkeys(best.offer([(weights, RIDGE) for weights in reached]), far)
        for number, far in chosen.items():
            weights = next(islice(student.tangents(start, number, step).path(), far, None))
            if all(np.isfinite(array).all() for array in vars(weights).values()):
                best.weights[number] = weights
        if not chosen:
            return
