"""What layers should make: what they make in the original, on calibration samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import Graph
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.behind import Behind
from onnxprune.repairing.consumers import Consumer
from onnxprune.repairing.layers import Features, as_rows
from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.repairing.rows import HELD_OUT, ROWS_A_SAMPLE, fed, samples_at_a_time


def rows_a_sample(consumer: Consumer, graph: Graph) -> int:
    """How many positions a sample makes a layer's outputs at: as many as when the model was read, about."""
    shape, inputs = graph.shapes[consumer.output], next(iter(graph.input_shapes.values()), ())
    rows = math.prod(shape) // max(shape[consumer.made_at], 1)
    return rows // max(inputs[0] if inputs else 1, 1)


@dataclass(frozen=True)
class Wanted:
    """What a layer should make: the original's outputs at these positions, on these samples."""

    original: ModelProto
    consumer: Consumer
    positions: np.ndarray
    samples: Calibration
    threads: int
    rows_a_sample: int = 1
    """How many positions a sample makes outputs at, about."""

    behind: Behind | None = None
    """What stands behind the layer, if it is to be fitted to what is felt there."""

    def equations(self, model: ModelProto, features: Features) -> tuple[NormalEquations, NormalEquations]:
        """Normal equations of the layer in the model as it is now: on most samples, and on those held out."""
        rng = np.random.default_rng(0)
        sums = tuple(NormalEquations(features.count, len(self.positions)) for _ in range(2))
        for part in self.batches(model, features.count):
            rows = features.of(part.data)
            some = rng.permutation(len(rows))[: part.most_rows]
            sums[part.held_out].add(rows[some], part.wanted[some])
        return sums[0], sums[1]

    def batches(self, model: ModelProto, features: int) -> Iterator[Batch]:
        """What the layer reads in the model as it is now, and what it should make of it; that many features a row."""
        consumer, one = self.consumer, self.behind
        felt = one.felt if one else consumer.output
        given = (
            [(each.name_in(self.original if each.is_late else model), each.is_late) for each in one.given]
            if one
            else []
        )
        late, soon = ([name for name, is_late in given if is_late is asked] for asked in (True, False))
        teacher = session_for(up_to(self.original, [consumer.output, felt, *late]), threads=self.threads or 1)
        student = session_for(up_to(model, [consumer.input, *soon]), threads=self.threads or 1)
        most = samples_at_a_time(self.rows_a_sample, features)
        size = max(1, min(most, len(self.samples) // HELD_OUT))
        for number, samples in enumerate(self.samples.batches(size)):
            feed = self.samples.at(self.samples.filled(samples))
            told, found = named(teacher, feed), named(student, feed)
            shape = told[consumer.output].shape
            wanted = self._rows(told[consumer.output], shape, whole=True)
            yield Batch(
                data=found[consumer.input],
                wanted=wanted,
                felt=self._rows(told[felt], shape, whole=True) if one else wanted,
                given=tuple(
                    self._rows((told if is_late else found)[name], shape, whole=is_late) for name, is_late in given
                ),
                samples=len(samples),
                held_out=number % HELD_OUT == HELD_OUT - 1,
            )

    def _rows(self, array: np.ndarray, shape: tuple[int, ...], *, whole: bool) -> np.ndarray:
        """`[rows, outputs]` of a tensor that broadcasts to the layer's output, the original's if it is `whole`."""
        at = self.consumer.made_at
        if whole:
            return as_rows(np.broadcast_to(array, shape), at)[:, self.positions]
        return as_rows(np.broadcast_to(array, (*shape[:at], len(self.positions), *shape[at + 1 :])), at)


def named(session: Session, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the session makes of a feed, by name."""
    return dict(zip((port.name for port in session.get_outputs()), session.run(None, fed(session, feed)), strict=True))


@dataclass(frozen=True)
class Batch:
    """
    What a layer reads, and in rows `[rows, outputs]` what it should make of it, what of that is felt and what is given
    behind it.
    """

    data: np.ndarray
    wanted: np.ndarray
    felt: np.ndarray
    given: tuple[np.ndarray, ...]
    samples: int
    held_out: bool

    @property
    def most_rows(self) -> int:
        """How many rows are taken of it at most."""
        return ROWS_A_SAMPLE * self.samples
