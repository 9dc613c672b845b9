"""Refitting one layer that is linear in its weight: normal equations from what it reads now to what it should make."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import Graph
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.layers import Features, as_matrix, as_rows, bias_effect, from_matrix, output_effect
from onnxprune.repairing.least_squares import NormalEquations, refitted
from onnxprune.repairing.places import Place
from onnxprune.repairing.rows import HELD_OUT, ROWS_A_SAMPLE, fed, samples_at_a_time
from onnxprune.repairing.steps import Refit, Repaired
from onnxprune.rules.axes import Dim, kept_positions, leaves


@dataclass(frozen=True)
class ConsumerStep:
    """A step about one such layer: where it stands and what it reads."""

    couplings: Couplings
    consumer: Consumer

    @property
    def position(self) -> int:
        """Of its node in the graph."""
        return self.consumer.node.position

    @property
    def reads(self) -> frozenset[Dim]:
        """The Dims that it sums over."""
        return frozenset(leaves(self.consumer.type))


class LinearStep(ConsumerStep):
    """One such layer, by least squares."""

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give the layer the weights that fit best."""
        typing, consumer = self.couplings.typing, self.consumer
        made = typing.axes(typing.tensors[consumer.output])[consumer.made_at]
        graph, positions = self.couplings.graph, kept_positions(made, kept)
        wanted = Wanted(graph.model, consumer, positions, samples, threads, rows_a_sample(consumer, graph))
        return refit(model, consumer, wanted)


def rows_a_sample(consumer: Consumer, graph: Graph) -> int:
    """How many positions a sample makes a layer's outputs at: as many as when the model was read, about."""
    shape, inputs = graph.shapes[consumer.output], next(iter(graph.input_shapes.values()), ())
    rows = math.prod(shape) // max(shape[consumer.made_at], 1)
    return rows // max(inputs[0] if inputs else 1, 1)


def linear_steps(couplings: Couplings) -> Iterator[LinearStep]:
    """Every layer of the model that is linear in its weight."""
    for consumer in consumers(couplings):
        yield LinearStep(couplings, consumer)


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
        teacher = session_for(up_to(self.original, [self.consumer.output]), threads=self.threads or 1)
        student = session_for(up_to(model, [self.consumer.input]), threads=self.threads or 1)
        most = samples_at_a_time(self.rows_a_sample, features)
        size = max(1, min(most, len(self.samples) // HELD_OUT))
        for number, samples in enumerate(self.samples.batches(size)):
            feed = self.samples.at(self.samples.filled(samples))
            (output,), (data,) = teacher.run(None, fed(teacher, feed)), student.run(None, fed(student, feed))
            wanted = as_rows(output, self.consumer.made_at)[:, self.positions]
            yield Batch(data, wanted, ROWS_A_SAMPLE * len(samples), number % HELD_OUT == HELD_OUT - 1)


@dataclass(frozen=True)
class Batch:
    """What a layer reads, the `[rows, outputs]` it should make of it, and how many rows are taken of these at most."""

    data: np.ndarray
    wanted: np.ndarray
    most_rows: int
    held_out: bool


def refit(model: ModelProto, consumer: Consumer, wanted: Wanted) -> Iterator[Refit]:
    """
    Give a layer of the model the weights that fit best: what that brought, and which constants changed.

    Nothing is said of a layer that cannot change.
    """
    weight = Place(model, consumer.output, consumer.weight)
    if not weight.can_change:
        return
    bias = Bias.of(model, consumer, wanted.samples)
    if bias is None:
        return
    fitted, held_out = wanted.equations(model, Features(weight.node, model, consumer, weight.array))
    if not fitted.rows or not held_out.rows:
        return
    start = np.vstack([as_matrix(weight.array, consumer), bias.constant(len(wanted.positions))]).astype(np.float64)
    best, penalty = refitted(fitted, held_out, start, constant_is_free=bias.is_free)
    before, after = held_out.error(start), held_out.error(best)
    changed = []
    if penalty is not None:
        weight.put(from_matrix(best[:-1], weight.array, consumer))
        bias.move(best[-1] - start[-1])
        changed = [weight.name] if bias.place is None else [weight.name, bias.place.name]
    yield Refit(Repaired(consumer.node.name, before, after, penalty), tuple(changed))


@dataclass(frozen=True)
class Bias:
    """A layer's bias: an output grows by `effect` when its number in it grows by one. No `place`: it stays as it is."""

    place: Place | None
    effect: float
    is_own: bool
    """Does the layer itself add it, so that it is part of the layer's output?"""

    @classmethod
    def of(cls, model: ModelProto, consumer: Consumer, samples: Calibration) -> Bias | None:
        """The bias of a layer, tried on a few samples; None if it is the layer's own and does more than be added."""
        is_own = consumer.bias_node is consumer.node
        if consumer.bias is None:
            return cls(None, 0.0, is_own)
        place = Place(model, consumer.bias_node.outputs[0], consumer.bias)
        read = {number: name for number, name in enumerate(place.node.input) if name and number != consumer.bias}
        session = session_for(up_to(model, list(read.values())), threads=1)
        feed = samples.at(samples.filled(next(samples.batches(2))))
        found = dict(zip(read, session.run(None, fed(session, feed)), strict=True))
        effect = bias_effect(place.node, model, consumer, found, place.array) if place.can_change else None
        if effect is not None and not is_own:
            effect *= output_effect(place.node, model, consumer, found, place.array)
        if effect is None:
            return None if is_own else cls(None, 0.0, is_own)
        return cls(place, effect, is_own)

    @property
    def is_free(self) -> bool:
        """May it change?"""
        return self.place is not None

    def constant(self, outputs: int) -> np.ndarray:
        """What it adds to each of the layer's own outputs."""
        if self.place is None or not self.is_own:
            return np.zeros(outputs)
        return np.asarray(self.effect * self.place.array.ravel(), np.float64)

    def move(self, by: np.ndarray) -> None:
        """Let the outputs grow by so much."""
        if self.place is not None:
            self.place.put(self.moved(by))

    def moved(self, by: np.ndarray) -> np.ndarray:
        """Its numbers for outputs that are larger by so much."""
        assert self.place is not None
        bias = self.place.array
        return np.asarray((bias + (by / self.effect).reshape(bias.shape)).astype(bias.dtype))
