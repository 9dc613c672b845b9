"""
Refitting many layers side by side in one node: each is a least squares problem of its own.

    y[block] = x[block] · W[block] + b[block]        a block may be a single channel

Blocks that fit no better on samples held out stay as they were, whatever becomes of the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import PRECISE_TYPES
from onnxprune.repairing.consumers import Consumer, added_bias
from onnxprune.repairing.layers import DATA, WEIGHT, alone, as_rows
from onnxprune.repairing.least_squares import Blocks, refitted
from onnxprune.repairing.linear import Bias, Wanted, rows_a_sample
from onnxprune.repairing.places import Place
from onnxprune.repairing.steps import Refit, Repaired
from onnxprune.rules.axes import Axis, Dim, kept_positions, leaves
from onnxprune.rules.facts import SideBySide
from onnxprune.rules.operation import Op


@dataclass(frozen=True)
class SideBySideStep:
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

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give each block the weights that fit best."""
        graph, typing, consumer = self.couplings.graph, self.couplings.typing, self.consumer
        weight = Place(model, consumer.output, consumer.weight)
        bias = Bias.of(model, consumer, samples) if weight.can_change else None
        if bias is None:
            return
        made = typing.axes(typing.tensors[consumer.output])[consumer.made_at]
        rows = rows_a_sample(consumer, graph)
        wanted = Wanted(graph.model, consumer, kept_positions(made, kept), samples, threads, rows)
        matrices = Matrices(weight.array, len(kept_positions(self.blocks, kept)), consumer.made)
        yield from refit(model, weight, bias, matrices, wanted)


def side_by_side_steps(couplings: Couplings) -> Iterator[SideBySideStep]:
    """Every node of the model that is many layers side by side and has constant weights."""
    for op, fact in facts_where(couplings.typing, SideBySide):
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
    return Consumer(op.node, fact.data, fact.weight, 1 - fact.made, read, fact.made, 1, bias_node, bias, element_type)


class Matrices:
    """The weight's blocks as `[features, outputs]` each; `made` is the axis of a block that counts its outputs."""

    def __init__(self, weight: np.ndarray, blocks: int, made: int) -> None:
        self.blocks, self._made, self._weight = blocks, 1 + made, weight
        self._split = (blocks, weight.shape[0] // blocks, *weight.shape[1:])
        self.outputs = self._split[self._made]
        self._rest = tuple(np.delete(np.array(self._split), (0, self._made)))
        self.features = int(np.prod(self._rest))

    def all(self) -> np.ndarray:
        """`[blocks, features, outputs]`."""
        return np.moveaxis(self._weight.reshape(self._split), self._made, -1).reshape(self.blocks, -1, self.outputs)

    def weight(self, matrices: np.ndarray) -> np.ndarray:
        """Such matrices, with any number of outputs, in the form and type of the weight."""
        stacked = np.moveaxis(matrices.reshape(self.blocks, *self._rest, -1), -1, self._made)
        merged = stacked.reshape(-1, *stacked.shape[2:])
        return np.ascontiguousarray(merged.astype(self._weight.dtype))


class BlockFeatures:
    """What each block multiplies its weights with, found by one run with an output for each of its features."""

    def __init__(self, node: NodeProto, model: ModelProto, consumer: Consumer, matrices: Matrices) -> None:
        self._form = (matrices.blocks, matrices.features)
        ones = np.broadcast_to(np.eye(matrices.features), (matrices.blocks, matrices.features, matrices.features))
        self._ones, self._made_at = matrices.weight(ones), consumer.made_at
        self._session = alone(node, model, consumer)

    def of(self, data: np.ndarray) -> np.ndarray:
        """`[rows, blocks, features]` of a batch."""
        (found,) = self._session.run(None, {DATA: data, WEIGHT: self._ones})
        return as_rows(found, self._made_at).reshape(-1, *self._form)


def refit(model: ModelProto, weight: Place, bias: Bias, matrices: Matrices, wanted: Wanted) -> Iterator[Refit]:
    """Give each block the weights that fit best: what that brought in all, and which constants changed."""
    fitted, held_out = equations(model, weight, matrices, wanted)
    if not fitted.rows or not held_out.rows:
        return
    constant = bias.constant(matrices.blocks * matrices.outputs).reshape(matrices.blocks, 1, -1)
    start = np.concatenate([matrices.all(), constant], axis=1, dtype=np.float64)
    best, penalties, errors = start.copy(), list[float](), np.zeros(3)
    for block, weights in enumerate(start):
        unseen = held_out.of(block)
        best[block], penalty = refitted(fitted.of(block), unseen, weights, constant_is_free=bias.is_free)
        penalties.extend(() if penalty is None else (penalty,))
        errors += unseen.energy * np.array([unseen.error(weights), unseen.error(best[block]), 1.0])
    changed: list[str] = []
    if penalties:
        weight.put(matrices.weight(best[:, :-1]))
        bias.move((best[:, -1] - start[:, -1]).ravel())
        changed = [weight.name] if bias.place is None else [weight.name, bias.place.name]
    before, after = (float(error) for error in errors[:2] / max(errors[2], 1e-30))
    yield Refit(Repaired(wanted.consumer.node.name, before, after, max(penalties, default=None)), tuple(changed))


def equations(model: ModelProto, weight: Place, matrices: Matrices, wanted: Wanted) -> tuple[Blocks, Blocks]:
    """Normal equations of all blocks in the model as it is now: on most samples, and on those held out."""
    features = BlockFeatures(weight.node, model, wanted.consumer, matrices)
    fitted, held_out = (Blocks(matrices.blocks, matrices.features, matrices.outputs) for _ in range(2))
    rng = np.random.default_rng(0)
    for part in wanted.batches(model, matrices.blocks * matrices.features):
        rows = features.of(part.data)
        some = rng.permutation(len(rows))[: part.most_rows]
        outputs = part.wanted[some].reshape(len(some), matrices.blocks, matrices.outputs)
        (held_out if part.held_out else fitted).add(rows[some], outputs)
    return fitted, held_out
