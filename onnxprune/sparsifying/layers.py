"""The layers whose weights may become zero, and what is known of each on calibration data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.layers import Features, as_matrix, from_matrix
from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.repairing.places import Place
from onnxprune.repairing.rows import ROWS_A_SAMPLE
from onnxprune.repairing.wanted import Wanted
from onnxprune.sparsifying.blocks import Candidates, anything, blocks_in, lowest_in_blocks
from onnxprune.sparsifying.sparsity import Sparsity

ROWS_A_FEATURE = 3
"""Rows that a layer is fitted on for each of its features, if there are so many samples."""


@dataclass(frozen=True)
class Layer:
    """One layer of the couplings' model: its weight is read here and nowhere else, and its biases are not pruned."""

    couplings: Couplings
    consumer: Consumer

    @property
    def weight(self) -> np.ndarray:
        """The numbers before any went."""
        return Place(self.couplings.graph.model, self.consumer.output, self.consumer.weight).array

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return self.couplings.graph.shapes[self.consumer.node.inputs[self.consumer.weight]]

    @property
    def size(self) -> int:
        """How many weights there are."""
        return math.prod(self.shape)

    def candidates(self, wanted: Sparsity) -> Candidates:
        """Which weights may go."""
        if wanted.pattern is None:
            return anything
        stay, block = wanted.pattern
        return lowest_in_blocks(blocks_in(self.consumer, self.shape, block), stay)

    def zeros_in_pattern(self, wanted: Sparsity) -> int:
        """How many weights go where blocks keep no more than the pattern says."""
        assert wanted.pattern is not None
        stay, block = wanted.pattern
        real = (blocks_in(self.consumer, self.shape, block) < self.size // self.shape[self.consumer.made]).sum(1)
        return int(np.maximum(real - stay, 0).sum()) * self.shape[self.consumer.made]

    def samples(self, calibration: Calibration, least: int) -> Calibration:
        """The first samples: `least` of them, or more where each has but few rows."""
        shape, graph = self.couplings.graph.shapes[self.consumer.output], self.couplings.graph
        together = 1 if calibration.stacked else next(iter(graph.input_shapes.values()))[0]
        rows = min(ROWS_A_SAMPLE, math.prod(shape) // (shape[self.consumer.made_at] * together)) or 1
        features = self.size // self.shape[self.consumer.made]
        return calibration.first(max(least, math.ceil(ROWS_A_FEATURE * features / rows)))


def layers_of(couplings: Couplings) -> tuple[Layer, ...]:
    """Every layer whose weights may become zero, in graph order."""
    found = sorted(consumers(couplings), key=lambda consumer: consumer.node.position)
    return tuple(Layer(couplings, consumer) for consumer in found if is_own(couplings, consumer))


def is_own(couplings: Couplings, consumer: Consumer) -> bool:
    """Is the weight read by this layer alone, and can its numbers change?"""
    graph, name = couplings.graph, consumer.node.inputs[consumer.weight]
    shown = name in graph.captured or any(port.name == name for port in graph.outputs)
    place = Place(graph.model, consumer.output, consumer.weight)
    return len(graph.readers[name]) == 1 and not shown and place.can_change


@dataclass(frozen=True)
class Patient:
    """A layer in the model as it is now: what it reads there, and what it made in the model before."""

    layer: Layer
    bias: Bias
    place: Place
    fitted: NormalEquations
    held_out: NormalEquations
    start: np.ndarray
    """The weights and, last, the constant: `[features + 1, outputs]`."""

    @classmethod
    def of(
        cls, layer: Layer, model: ModelProto, samples: Calibration, threads: int, outputs: np.ndarray | None = None
    ) -> Iterator[Patient]:
        """The layer, or only some of its outputs; nothing if too little is known of it to fit it."""
        consumer, weight = layer.consumer, layer.weight
        some = np.arange(weight.shape[consumer.made]) if outputs is None else outputs
        bias, place = Bias.of(model, consumer, samples), Place(model, consumer.output, consumer.weight)
        if bias is None:
            return
        wanted = Wanted(layer.couplings.graph.model, consumer, some, samples, threads)
        fitted, held_out = wanted.equations(model, Features(place.node, model, consumer, weight))
        constant = bias.constant(weight.shape[consumer.made])
        start = np.vstack([as_matrix(weight, consumer), constant]).astype(np.float64)[:, some]
        if fitted.rows and held_out.rows:
            yield cls(layer, bias, place, fitted, held_out, start)

    def put(self, weights: np.ndarray) -> tuple[str, ...]:
        """Give the model these weights; the constants that have new numbers."""
        self.place.put(from_matrix(weights[:-1], self.place.array, self.layer.consumer))
        self.bias.move(weights[-1] - self.start[-1])
        return (self.place.name,) if self.bias.place is None else (self.place.name, self.bias.place.name)
