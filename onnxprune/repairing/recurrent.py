"""
Refitting a layer that runs along time, so that its gates see the sums that they saw in the original.

The sums are linear in the input and in the state one step before, so the weights for given ones are a least squares
problem. Which states, when those of the pruned layer depend on the weights? First the original's, of the units that
stay; then twice the pruned layer's own under the weights found last, so that they answer to their own errors. Each
direction keeps whichever weights bring its states closest to the original's on samples held out.

Where there are few weights, they are then fitted to the states themselves (`traces`), and there are more sequences to
learn from than samples: the original says of any input what should come of it, so mixes of two will do.

Sources: Ross, Gordon and Bagnell 2011, A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
Learning: learn on the states that the learner itself comes to; Zhang et al. 2018, mixup: Beyond Empirical Risk
Minimization, for the mixes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import PRECISE_TYPES, Node
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.cells import Cell, OneStep, Stored, Sums, Weights, logistic, one_before, rows_of
from onnxprune.repairing.least_squares import PENALTIES, NormalEquations, refitted
from onnxprune.repairing.rows import BATCH, HELD_OUT, ROWS_A_SAMPLE, fed
from onnxprune.repairing.steps import Refit, Repaired
from onnxprune.repairing.traces import Equations, Run, Traces
from onnxprune.rules.axes import Axis, Dim, kept_positions, leaves
from onnxprune.rules.facts import Recurrence

OWN_PASSES = 2
"""How often the weights are fitted to the states that they lead to themselves."""

TRACE_PASSES = 4
"""How often the weights then take a step towards the states that are wanted, where there are few enough weights."""

TRACE_PENALTIES = (1e-3, 1e-2, 1e-1)
"""Penalties of such a step that are tried, in units of the mean square of what the weights do to the states."""

TRACE_SHARES = (1.0, 0.5, 0.25)
"""Shares of such a step that are tried: all units take it at once, so that together they may go too far."""

TRACE_ROWS = 20
"""Rows for each weight of a unit that it is found from, about."""

MIXES = 2
"""So many more batches are learned from for each, of sequences mixed two by two, where there are few weights."""

REMEMBERED = 2**26
"""Numbers that are held in memory at most, give or take a batch."""

JOINT = 2**24
"""Largest sum of the sizes of normal equations for which each unit gets its own."""

JOINT_ROWS = 50
"""Rows for each feature that these are added up from, about: more tell little and cost much."""


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
    for op, fact in facts_where(couplings.typing, Recurrence):
        weight, recurrent, x = op.input(fact.weight), op.input(fact.recurrent), op.input(fact.x)
        if graph.element_types.get(x.name) in PRECISE_TYPES:
            yield RecurrentStep(couplings, op.node, fact, axes(weight)[1], axes(recurrent)[2], axes(x)[2])


@dataclass(frozen=True)
class Passage:
    """
    One batch: what the pruned layer reads, by number of its input, and what it should make of it.

    `states` and the `before` that each step starts from are the original's, `[directions, time, batch, units that
    stay]`; `sums` are those of each direction. `valid` [time, batch] is false behind the end of a sequence.
    """

    feed: Mapping[int, np.ndarray]
    states: np.ndarray
    before: np.ndarray
    sums: tuple[Sums, ...]
    lengths: np.ndarray
    valid: np.ndarray
    held_out: bool

    @property
    def size(self) -> int:
        """Numbers that it holds."""
        sums = sum(one.of_input.size + one.of_state.size for one in self.sums)
        return self.states.size + self.before.size + sums + sum(array.size for array in self.feed.values())


def remembered(passages: Iterable[Passage]) -> Iterator[Passage]:
    """As many of them as may be held in memory."""
    total = 0
    for passage in passages:
        yield passage
        total += passage.size
        if total > REMEMBERED:
            return


class Teacher:
    """The layer in the original, and the rows and units of it that stay."""

    def __init__(
        self, stored: Stored, model: ModelProto, fact: Recurrence, rows: np.ndarray, units: np.ndarray
    ) -> None:
        self.node, self.model, self.fact = stored.node, model, fact
        self._weights, self._rows, self._units = stored.directions(), rows, units
        self._cell = Cell(stored, model, fact)

    def passage(self, feed: Mapping[int, np.ndarray], given: Mapping[int, np.ndarray], *, held_out: bool) -> Passage:
        """What the original makes of its own inputs is wanted of the pruned layer for those given."""
        x = feed[self.fact.x]
        lengths = lengths_in(feed, self.fact)
        states = self._cell.states(feed, self._weights)
        before = states_before(states, feed, self.fact)
        sums = (Sums.of(weights, self.fact, x, h) for weights, h in zip(self._weights, before, strict=True))
        return Passage(
            feed=given,
            states=states[..., self._units],
            before=before[..., self._units],
            sums=tuple(one.only(self._rows, self._units) for one in sums),
            lengths=lengths,
            valid=np.arange(len(x))[:, None] < lengths,
            held_out=held_out,
        )


def lengths_in(feed: Mapping[int, np.ndarray], fact: Recurrence) -> np.ndarray:
    """How long each sequence is."""
    time, batch = feed[fact.x].shape[:2]
    return np.full(batch, time) if fact.lengths is None else feed[fact.lengths]


def states_before(states: np.ndarray, feed: Mapping[int, np.ndarray], fact: Recurrence) -> np.ndarray:
    """For states `[directions, time, batch, hidden]`, those that each step starts from."""
    first = np.zeros_like(states[:, 0]) if fact.start is None else feed[fact.start]
    lengths = lengths_in(feed, fact)
    pairs = zip(states, first, fact.backwards, strict=True)
    return np.stack([one_before(one, start, lengths, backwards=backwards) for one, start, backwards in pairs])


def firsts(feed: Mapping[int, np.ndarray], fact: Recurrence, like: np.ndarray) -> np.ndarray:
    """What every direction starts from, `[carried, directions, batch, hidden]`."""
    return np.stack([feed.get(number, np.zeros_like(like[:, 0])) for number, _ in fact.carried])


def passages_of(
    teacher: Teacher,
    stored: Stored,
    model: ModelProto,
    samples: Calibration,
    threads: int,
    mixing: np.random.Generator | None = None,
) -> Iterator[Passage]:
    """Batch by batch, what the layer reads in the model as it is now, or mixes of it, and what is wanted of it."""
    numbers = read_besides_weights(teacher.fact)
    names = tuple([node.input[number] for number in numbers] for node in (teacher.node, stored.node))
    models = zip((teacher.model, model), names, strict=True)
    sessions = [session_for(up_to(model, read), threads=threads) for model, read in models]
    size = max(1, min(BATCH, len(samples) // HELD_OUT))
    for number, batch in enumerate(samples.batches(size)):
        feed = samples.at(samples.filled(batch))
        before, now = (
            dict(zip(numbers, run(session, read, feed), strict=True))
            for session, read in zip(sessions, names, strict=True)
        )
        held_out = number % HELD_OUT == HELD_OUT - 1
        if mixing is None:
            yield teacher.passage(before, now, held_out=held_out)
        elif not held_out:
            sequences = before[teacher.fact.x].shape[1]
            order, share = mixing.permutation(sequences), 1 - mixing.random((sequences,)) / 2
            pair = (mixed(one, teacher.fact, order, share) for one in (before, now))
            yield teacher.passage(*pair, held_out=False)


def mixed(
    feed: Mapping[int, np.ndarray], fact: Recurrence, order: np.ndarray, share: np.ndarray
) -> dict[int, np.ndarray]:
    """The inputs of a layer, each sequence mixed with another of the batch, of which it keeps a share."""
    x, parts = feed[fact.x], share[:, None].astype(feed[fact.x].dtype)
    return {**feed, fact.x: parts * x + (1 - parts) * x[:, order]}


def read_besides_weights(fact: Recurrence) -> tuple[int, ...]:
    """The numbers of the inputs that are no weights."""
    optional = (number for number in (fact.lengths, fact.start, *fact.others) if number is not None)
    return (fact.x, *optional)


def run(session: Session, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """These tensors, one name as often as it stands there."""
    found = dict(zip(dict.fromkeys(names), session.run(None, fed(session, feed)), strict=True))
    return [found[name] for name in names]


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

    def equations(self, directions: Sequence[Weights], traces: Traces) -> tuple[Equations, Equations]:
        """What brings a direction's states closer to those wanted: on most batches, and on those held out."""
        found = Equations(traces.units, traces.features), Equations(traces.units, traces.features)
        steps = sum(int(passage.valid.sum()) for passage in self.passages)
        share, rng = TRACE_ROWS * traces.features / steps, np.random.default_rng(0)
        for passage in self.passages:
            states = self.cell.states(passage.feed, directions)
            before = states_before(states, passage.feed, self.fact)
            missing, number = passage.states - states, traces.direction
            run = Run(
                x=passage.feed[self.fact.x],
                before=before[number],
                first=firsts(passage.feed, self.fact, before)[:, number],
                valid=passage.valid,
                backwards=self.fact.backwards[number],
            )
            some = passage.valid & (rng.random(passage.valid.shape) < share)
            rows = [(rows[:, some[time]], missing[number, time, some[time]]) for time, rows in traces.of(run)]
            traced, wanted = zip(*rows, strict=True)
            found[passage.held_out].add(np.concatenate(traced, axis=1), np.concatenate(wanted))
        return found

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
    if best.penalties and all(is_small(weights, student.fact) for weights in best.weights):
        trace(student, best, OneStep(stored, model, student.fact))
    before, after = (float(errors[:, 0].sum() / max(errors[:, 1].sum(), 1e-30)) for errors in (best.first, best.errors))
    constants = stored.put(best.weights) if best.penalties else ()
    return Refit(Repaired(stored.node.name, before, after, max(best.penalties.values(), default=None)), constants)


def is_small(weights: Weights, fact: Recurrence) -> bool:
    """Are there few enough weights for equations of all those of each unit?"""
    inputs, units = weights.of_input.shape[1], weights.of_state.shape[1]
    return bool(units * (fact.gates * (inputs + units + 1)) ** 2 <= JOINT)


def trace(student: Student, best: Best, step: OneStep) -> None:
    """Bring the states closer by steps of all weights of each unit at once."""
    for _ in range(TRACE_PASSES):
        traces = [Traces(step, student.fact, number, weights) for number, weights in enumerate(best.weights)]
        equations = [student.equations(best.weights, one) for one in traces]
        solved: dict[int, tuple[float, float]] = {}
        for penalty in TRACE_PENALTIES:
            steps = [fitted.solved(penalty) for fitted, _ in equations]
            for share in TRACE_SHARES:
                taken = [(one.changed(share * by), penalty) for one, by in zip(traces, steps, strict=True)]
                solved |= dict.fromkeys(best.offer(taken), (penalty, share))
        for number, (penalty, share) in solved.items():
            fitted, held_out = equations[number]
            best.weights[number] = traces[number].changed(share * fitted.plus(held_out).solved(penalty))
        if not solved:
            return


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
