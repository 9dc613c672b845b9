"""
Refit the layers behind what was pruned, so that they make what they made before.

Layer by layer, in graph order, each from its input in the pruned model, as repaired so far, to its output in the
original::

    original   x ──► layer ──► y            wanted
    pruned     x' ─► layer with W', b' ──► y'   as close to y as least squares can bring it

No labels, no gradients. A layer stays as it was where the new weights are no better on samples that they were not
fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.choosing.plan import Plan
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.consumers import Consumer, consumers_of
from onnxprune.repairing.layers import Features, as_matrix, as_rows, bias_effect, from_matrix
from onnxprune.repairing.least_squares import NormalEquations, refitted
from onnxprune.repairing.places import Place
from onnxprune.rules.axes import kept_positions

REPAIR_SAMPLES = 512
"""Samples that layers are refitted on, the first ones."""

HELD_OUT = 5
"""One batch in so many is held out, to choose the penalty and to see whether the new weights are better."""

ROWS_A_SAMPLE = 200
"""Positions of a sample that are taken at most, at random: neighbours in an image say much the same."""

BATCH = 16


@dataclass(frozen=True, slots=True)
class Repaired:
    """
    What became of one layer: its squared error over the energy of its outputs, on samples held out, before and after.

    `penalty` is that of the ridge; None where the layer stayed as it was.
    """

    layer: str
    before: float
    after: float
    penalty: float | None


@dataclass(frozen=True)
class Repair:
    """The repaired model, what became of each layer, and the constants that have new numbers."""

    model: ModelProto
    layers: tuple[Repaired, ...]
    constants: tuple[str, ...]

    @property
    def refitted(self) -> int:
        """How many layers have new weights."""
        return sum(layer.penalty is not None for layer in self.layers)


def repair(
    couplings: Couplings,
    plan: Plan,
    pruned: ModelProto,
    calibration: Calibration,
    *,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Repair:
    """
    Refit every layer of the pruned model that reads pruned channels, or what such layers made.

    Only numbers of weights and biases change. The original is the teacher; labels are not used.

    Source: He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks, section 3.2 (layer by layer,
    each from the inputs that it gets in the pruned model).
    """
    kept = plan.kept(couplings)
    layers = consumers_of(couplings, kept.keys())
    model = ModelProto()
    model.CopyFrom(pruned)
    samples = calibration.first(REPAIR_SAMPLES)
    found: list[Repaired] = []
    changed: list[str] = []
    for number, consumer in enumerate(layers):
        made = couplings.typing.axes(couplings.typing.tensors[consumer.output])[consumer.made_at]
        wanted = Wanted(couplings.graph.model, consumer, kept_positions(made, kept), samples, threads)
        for layer, constants in refit(model, consumer, wanted):
            found.append(layer)
            changed.extend(constants)
        if progress:
            progress(consumer.node.name, number + 1, len(layers))
    return Repair(model, tuple(found), tuple(changed))


@dataclass(frozen=True)
class Wanted:
    """What a layer should make: the original's outputs at these positions, on these samples."""

    original: ModelProto
    consumer: Consumer
    positions: np.ndarray
    samples: Calibration
    threads: int

    def equations(self, model: ModelProto, features: Features) -> tuple[NormalEquations, NormalEquations]:
        """Normal equations of the layer in the model as it is now: on most samples, and on those held out."""
        teacher = session_for(up_to(self.original, [self.consumer.output]), threads=self.threads or 1)
        student = session_for(up_to(model, [self.consumer.input]), threads=self.threads or 1)
        rng = np.random.default_rng(0)
        sums = tuple(NormalEquations(features.count, len(self.positions)) for _ in range(2))
        size = max(1, min(BATCH, len(self.samples) // HELD_OUT))
        for number, samples in enumerate(self.samples.batches(size)):
            feed = self.samples.at(self.samples.filled(samples))
            (output,), (data,) = teacher.run(None, fed(teacher, feed)), student.run(None, fed(student, feed))
            wanted = as_rows(output, self.consumer.made_at)[:, self.positions]
            rows = features.of(data)
            some = rng.permutation(len(rows))[: ROWS_A_SAMPLE * len(samples)]
            sums[number % HELD_OUT == HELD_OUT - 1].add(rows[some], wanted[some])
        return sums[0], sums[1]


def refit(model: ModelProto, consumer: Consumer, wanted: Wanted) -> Iterator[tuple[Repaired, tuple[str, ...]]]:
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
    yield Repaired(consumer.node.name, before, after, penalty), tuple(changed)


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
            bias = self.place.array
            self.place.put((bias + (by / self.effect).reshape(bias.shape)).astype(bias.dtype))


def fed(session: Session, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of the feed the session takes."""
    return {port.name: feed[port.name] for port in session.get_inputs()}
