"""
Giving a node that scales and shifts channels by stored statistics those that its channels have now.

    scale · (x - mean) / sqrt(variance + epsilon) + shift

Mean and variance are set so that each channel of the output has the mean and the standard deviation that it has in the
original; a channel stays as it was where it comes no closer to the original's on samples held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_in_main
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import Node
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.layers import as_rows
from onnxprune.repairing.places import Place
from onnxprune.repairing.rows import BATCH, HELD_OUT, fed
from onnxprune.repairing.steps import Refit, Repaired
from onnxprune.rules.axes import Axis, Dim, kept_positions
from onnxprune.rules.facts import Standardized


@dataclass(frozen=True)
class StandardizedStep:
    """One such node."""

    couplings: Couplings
    node: Node
    fact: Standardized
    channels: Axis

    @property
    def position(self) -> int:
        """Of its node in the graph."""
        return self.node.position

    @property
    def reads(self) -> frozenset[Dim]:
        """It sums over nothing: what it reads must have changed."""
        return frozenset()

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give the node the statistics that fit."""
        output, fact = self.node.outputs[0], self.fact
        places = [Place(model, output, number) for number in (fact.scale, fact.shift, fact.mean, fact.variance)]
        if not all(place.can_change for place in places):
            return
        fitted, held_out = self.moments(model, kept_positions(self.channels, kept), samples, threads or 1)
        if not fitted.rows or not held_out.rows:
            return
        scale, shift, mean, variance = (place.array.astype(np.float64) for place in places)
        now = Statistics(scale, shift, mean, variance, fact.epsilon)
        better = now.that_give(fitted)
        before, after = held_out.errors(now), held_out.errors(better)
        closer = after < before
        numbers = (np.where(closer, better.mean, now.mean), np.where(closer, better.variance, now.variance))
        changed = []
        for place, array in zip(places[2:], numbers, strict=True) if closer.any() else ():
            place.put(array.astype(place.array.dtype))
            changed.append(place.name)
        energy = max(float(held_out.yy.sum()), 1e-30)
        start, end = (float(errors.sum()) / energy for errors in (before, np.where(closer, after, before)))
        yield Refit(Repaired(self.node.name, start, end, 0.0 if changed else None), tuple(changed))

    def moments(
        self, model: ModelProto, positions: np.ndarray, samples: Calibration, threads: int
    ) -> tuple[Moments, Moments]:
        """What the node reads now and made once, on most samples and on those held out."""
        node = next(one for one in model.graph.node if self.node.outputs[0] in one.output)
        teacher = session_for(up_to(self.couplings.graph.model, [self.node.outputs[0]]), threads=threads)
        student = session_for(up_to(model, [node.input[self.fact.data]]), threads=threads)
        fitted, held_out = Moments(len(positions)), Moments(len(positions))
        size = max(1, min(BATCH, len(samples) // HELD_OUT))
        for number, batch in enumerate(samples.batches(size)):
            feed = samples.at(samples.filled(batch))
            (wanted,), (data,) = teacher.run(None, fed(teacher, feed)), student.run(None, fed(student, feed))
            part = held_out if number % HELD_OUT == HELD_OUT - 1 else fitted
            part.add(as_rows(data, 1), as_rows(wanted, 1)[:, positions])
        return fitted, held_out


def standardized_steps(couplings: Couplings) -> Iterator[StandardizedStep]:
    """Every node of the model that scales and shifts channels by stored statistics."""
    for op, fact in facts_in_main(couplings.typing, Standardized):
        channels = couplings.typing.axes(op.input(fact.data))[1]
        yield StandardizedStep(couplings, op.node, fact, channels)


class Moments:
    """Sums over rows, for each channel, of what is read (x), of what is wanted (y), and of their products."""

    def __init__(self, channels: int) -> None:
        self.x, self.y, self.xx, self.xy, self.yy = np.zeros((5, channels))
        self.rows = 0

    def add(self, read: np.ndarray, wanted: np.ndarray) -> None:
        """Take in rows `[rows, channels]` of both."""
        x, y = read.astype(np.float64), wanted.astype(np.float64)
        for total, part in zip((self.x, self.y, self.xx, self.xy, self.yy), (x, y, x * x, x * y, y * y), strict=True):
            total += part.sum(0)
        self.rows += len(x)

    def errors(self, statistics: Statistics) -> np.ndarray:
        """For each channel the squared error of what these statistics make of x."""
        a, c = statistics.slope, statistics.offset
        quadratic = a * a * self.xx + 2 * a * c * self.x + c * c * self.rows
        return np.asarray(quadratic - 2 * a * self.xy - 2 * c * self.y + self.yy)


@dataclass(frozen=True)
class Statistics:
    """A node's constants: its output is `slope` times its input plus `offset`, for each channel."""

    scale: np.ndarray
    shift: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float

    @property
    def slope(self) -> np.ndarray:
        """What the input is multiplied with."""
        return np.asarray(self.scale / np.sqrt(self.variance + self.epsilon))

    @property
    def offset(self) -> np.ndarray:
        """What is added then."""
        return np.asarray(self.shift - self.slope * self.mean)

    def that_give(self, moments: Moments) -> Statistics:
        """
        Those under which the output has the mean and the standard deviation of what is wanted.

        A channel for which there are none, as it does not vary or should not, keeps its own.
        """
        x, y = moments.x / moments.rows, moments.y / moments.rows
        spread_x, spread_y = moments.xx / moments.rows - x * x, moments.yy / moments.rows - y * y
        with np.errstate(all="ignore"):
            slope = np.sign(self.scale) * np.sqrt(np.maximum(spread_y, 0) / np.maximum(spread_x, 0))
            variance = (self.scale / slope) ** 2 - self.epsilon
            mean = x - (y - self.shift) / slope
            sound = np.isfinite(mean) & np.isfinite(variance) & (variance > 0)
        mean, variance = np.where(sound, mean, self.mean), np.where(sound, variance, self.variance)
        return Statistics(self.scale, self.shift, mean, variance, self.epsilon)
