"""
Refitting many layers side by side in one node: each is a least squares problem of its own.

    y[block] = x[block] · W[block] + b[block]        a block may be a single channel

Blocks that fit no better on samples held out stay as they were, whatever becomes of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_in_main
from onnxprune.reading.graph import PRECISE_TYPES
from onnxprune.repairing.consumers import Consumer, added_bias, room_for_bias
from onnxprune.repairing.fitting import FittedStep
from onnxprune.repairing.layers import DATA, WEIGHT, alone, as_rows
from onnxprune.repairing.places import Place
from onnxprune.rules.axes import Axis, Dim, kept_positions, leaves
from onnxprune.rules.facts import SideBySide
from onnxprune.rules.operation import Op


@dataclass(frozen=True)
class SideBySideStep(FittedStep):
    """One such node: `consumer` says what it reads and makes, all blocks together."""

    couplings: Couplings
    consumer: Consumer
    blocks: Axis
    summed: Axis

    @property
    def position(self) -> int:
        """Of its node in the graph."""
        return self.consumer.node.position

    @property
    def reads(self) -> frozenset[Dim]:
        """The Dims that each block sums over."""
        return frozenset(leaves(self.summed))

    def form(self, model: ModelProto, weight: Place, kept: Kept) -> SplitWeight:
        """Its weight, block by block."""
        return SplitWeight(model, weight, self.consumer, len(kept_positions(self.blocks, kept)))


def side_by_side_steps(couplings: Couplings) -> Iterator[SideBySideStep]:
    """Every node of the model that is many layers side by side and has constant weights."""
    for op, fact in facts_in_main(couplings.typing, SideBySide):
        consumer = consumer_of(op, fact, couplings)
        if consumer is not None:
            resolve = couplings.typing.solver.resolve
            yield SideBySideStep(couplings, consumer, resolve(fact.blocks), resolve(fact.summed))


def consumer_of(op: Op, fact: SideBySide, couplings: Couplings) -> Consumer | None:
    """The node as one layer, if its weights are constants."""
    graph, names = couplings.graph, op.node.inputs
    constants = [names[number] for number in (fact.weight, fact.bias) if number is not None]
    element_type = graph.element_types.get(names[fact.data])
    if names[fact.data] in graph.constants or any(name not in graph.constants for name in constants):
        return None
    if element_type not in PRECISE_TYPES:
        return None
    added = added_bias(op.output(), 1, couplings) if fact.bias is None else (op.node, fact.bias)
    bias_node, bias = added or (op.node, None)
    read = couplings.typing.axes(op.input(fact.data))[1]
    room, summed = room_for_bias(op, 1, couplings), 1 - fact.made
    return Consumer(op.node, fact.data, fact.weight, summed, read, fact.made, 1, bias_node, bias, element_type, room)


class SplitWeight:
    """
    The weight's blocks.

    `made` is the axis of a block that counts its outputs.
    """

    def __init__(self, model: ModelProto, weight: Place, consumer: Consumer, blocks: int) -> None:
        self.place, self._made, self._weight = weight, 1 + consumer.made, weight.array
        self._split = (blocks, self._weight.shape[0] // blocks, *self._weight.shape[1:])
        self._rest = tuple(np.delete(np.array(self._split), (0, self._made)))
        self._made_at, self._session = consumer.made_at, alone(weight.node, model, consumer)
        width = int(np.prod(self._rest))
        self._ones = self.weight(np.broadcast_to(np.eye(width), (blocks, width, width)))

    @property
    def matrices(self) -> np.ndarray:
        """`[blocks, features, outputs]`."""
        blocks = self._weight.reshape(self._split)
        return np.moveaxis(blocks, self._made, -1).reshape(len(blocks), -1, self._split[self._made])

    def weight(self, matrices: np.ndarray) -> np.ndarray:
        """Such matrices, with any number of outputs, in the form and type of the weight."""
        stacked = np.moveaxis(matrices.reshape(len(matrices), *self._rest, -1), -1, self._made)
        merged = stacked.reshape(-1, *stacked.shape[2:])
        return np.ascontiguousarray(merged.astype(self._weight.dtype))

    def features(self, data: np.ndarray) -> np.ndarray:
        """
        What each block multiplies its weights with, `[rows, blocks, features]`, for a batch.

        Found by one run with an output for each of a block's features.
        """
        (found,) = self._session.run(None, {DATA: data, WEIGHT: self._ones})
        return as_rows(found, self._made_at).reshape(-1, self._split[0], int(np.prod(self._rest)))
