"""What a layer that runs along time reads and makes: in the original, and in the model as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.probing.calibration import Calibration
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.cells import Cell, Stored, Sums, one_before
from onnxprune.repairing.rows import BATCH, HELD_OUT, fed
from onnxprune.rules.facts import Recurrence

REMEMBERED = 2**26
"""Numbers that are held in memory at most, give or take a batch."""


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
