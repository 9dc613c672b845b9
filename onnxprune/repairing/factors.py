"""
The two sides of a product of computed tensors: the layers that make them, and the columns of these that meet.

A layer of the pruned model could make every channel of the original, of what it reads now and with the weights that fit
best. The channels that are left to it are given mixes of these, so that few numbers say how the layer changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.consumers import Consumer
from onnxprune.repairing.layers import DATA, WEIGHT, Features, alone, as_matrix, from_matrix
from onnxprune.repairing.least_squares import refitted
from onnxprune.repairing.places import Place
from onnxprune.repairing.selections import Selection, in_rows
from onnxprune.repairing.wanted import Wanted, rows_a_sample
from onnxprune.rules.axes import kept_positions


@dataclass(frozen=True, slots=True)
class Operand:
    """A computed tensor, its axis that is summed over, counted from the end, and the layer that makes it."""

    tensor: str
    axis: int
    layer: Consumer

    def matrices(self, tensor: np.ndarray, stack: tuple[int, ...]) -> np.ndarray:
        """The tensor as `[stack, rows, width]`, for a stack that it broadcasts to."""
        found = in_rows(tensor, self.axis)
        return np.broadcast_to(found, (*stack, *found.shape[-2:])).reshape(-1, *found.shape[-2:])


class Layer:
    """A layer of the pruned model, with its weights as a matrix; `kept` are the outputs that it has left."""

    def __init__(self, couplings: Couplings, consumer: Consumer, model: ModelProto, kept: Kept, bias: Bias) -> None:
        typing = couplings.typing
        made = typing.axes(typing.tensors[consumer.output])[consumer.made_at]
        self.consumer, self.bias, self.kept = consumer, bias, kept_positions(made, kept)
        self.place = Place(model, consumer.output, consumer.weight)
        self.matrix = as_matrix(self.place.array, consumer).astype(np.float64)
        self.constant = bias.constant(len(self.kept))
        self._graph, self._model = couplings.graph, model
        self._read = kept_positions(consumer.type, kept)

    def widened(self, samples: Calibration, threads: int) -> Wide:
        """The layer with weights for all outputs of the original."""
        consumer, graph, own = self.consumer, self._graph, self.place
        whole = Place(graph.model, consumer.output, consumer.weight).array
        weight = as_matrix(np.take(whole, self._read, consumer.summed), consumer)
        outputs = weight.shape[1]
        wanted = Wanted(graph.model, consumer, np.arange(outputs), samples, threads, rows_a_sample(consumer, graph))
        equations = wanted.equations(self._model, Features(own.node, self._model, consumer, own.array))
        start = np.vstack([weight, self._whole_constant(outputs)]).astype(np.float64)
        best, _ = refitted(*equations, start, constant_is_free=self.bias.is_free)
        return Wide(self, self._model, best[:-1])

    def _whole_constant(self, outputs: int) -> np.ndarray:
        """What the layer's own bias adds to each output of the original."""
        if self.bias.place is None or not self.bias.is_own:
            return np.zeros(outputs)
        assert self.consumer.bias is not None
        bias = Place(self._graph.model, self.consumer.output, self.consumer.bias)
        return np.asarray(self.bias.effect * bias.array.ravel())

    def put(self) -> Iterator[str]:
        """Store the matrix and the constant; the names of what holds them now."""
        self.place.put(from_matrix(self.matrix, self.place.array, self.consumer))
        yield self.place.name
        if self.bias.place is not None:
            self.bias.move(self.constant - self.bias.constant(len(self.kept)))
            yield self.bias.place.name


class Wide:
    """A layer with weights `matrix` for all outputs of the original, `[features, outputs]`."""

    def __init__(self, layer: Layer, model: ModelProto, matrix: np.ndarray) -> None:
        self.matrix = matrix
        self._weight = from_matrix(matrix, layer.place.array, layer.consumer)
        self._session = alone(layer.place.node, model, layer.consumer)

    def outputs(self, data: np.ndarray) -> np.ndarray:
        """All of them, without any bias, from what the layer reads in the pruned model."""
        (found,) = self._session.run(None, {DATA: data, WEIGHT: self._weight})
        return np.asarray(found)


@dataclass(frozen=True)
class Block:
    """
    Columns that stand in a matrix together, as those of a head do: where in the original, and where now.

    The selections' fields are `[width]`; `stays` tells which of the original's columns are left.
    """

    whole: Selection
    now: Selection
    stays: np.ndarray

    def start(self, layer: Layer) -> np.ndarray:
        """The mix that takes each column that is left as it is, and adds what is added now."""
        constant = self.now.offset + self.now.scale * layer.constant[self.now.columns]
        return np.vstack([np.eye(len(self.stays))[:, self.stays], constant])

    def mix(self, mix: np.ndarray, wide: Wide, layer: Layer) -> None:
        """Let the layer's columns be this mix of what it could make."""
        now, known = self.now, wide.matrix[:, self.whole.columns] * self.whole.scale
        layer.matrix[:, now.columns] = known @ mix[:-1] / now.scale
        layer.constant[now.columns] = (mix[-1] - now.offset) / now.scale


@dataclass(frozen=True)
class Side:
    """An operand as a stack of blocks; `numbers` tells which of them is at each place of the stack."""

    operand: Operand
    layer: Layer
    blocks: tuple[Block, ...]
    numbers: np.ndarray

    @property
    def starts(self) -> tuple[np.ndarray, ...]:
        """The mixes that the blocks are now."""
        return tuple(block.start(self.layer) for block in self.blocks)


def side_of(operand: Operand, layer: Layer, whole: Selection, now: Selection) -> Side | None:
    """
    The operand with its blocks, from what stands at each place of the stack in the original and now.

    None where a column is in two blocks, or where other columns stand together now than those that stayed.
    """
    _, first, numbers = np.unique(whole.columns, axis=0, return_index=True, return_inverse=True)
    numbers = numbers.ravel()
    if not all(one.agrees(one.at(first[numbers])) for one in (whole, now)):
        return None
    blocks = tuple(Block(whole.at(place), now.at(place), np.isin(whole.columns[place], layer.kept)) for place in first)
    columns = whole.columns[first]
    stayed = all(np.array_equal(block.whole.columns[block.stays], layer.kept[block.now.columns]) for block in blocks)
    return Side(operand, layer, blocks, numbers) if stayed and len(np.unique(columns)) == columns.size else None
