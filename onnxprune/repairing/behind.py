"""
What stands behind a layer and works place by place: it decides how much of a layer's outputs is felt.

A rectifier makes the same of -1 and -2, a gate shuts some places altogether, and what a residual branch gets wrong adds
to what the other branch has got wrong already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Use
from onnxprune.reading.graph import Graph, Node
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.consumers import Consumer
from onnxprune.repairing.layers import as_rows
from onnxprune.rules.axes import Axis
from onnxprune.rules.facts import Pointwise


@dataclass(frozen=True)
class Behind:
    """
    The nodes from a layer's output, `made`, to the tensor `felt`, which is all that others read of it.

    `given` is what else they read, place by place. All these tensors have `rank` axes, or broadcast to them.
    """

    made: str
    felt: str
    given: tuple[Given, ...]
    rank: int


@dataclass(frozen=True)
class Given:
    """What the node that makes `output` reads at an input; `is_late` if layers of a later place help to make it."""

    output: str
    index: int
    element_type: int
    is_late: bool

    def name_in(self, model: ModelProto) -> str:
        """The tensor's name in a model."""
        return next(node for node in model.graph.node if self.output in node.output).input[self.index]


def behind(couplings: Couplings, consumer: Consumer) -> Behind | None:
    """What stands behind a layer; None if nothing does that works place by place."""
    graph, made = couplings.graph, consumer.output
    nodes, felt = reach(couplings, made)
    if not nodes or graph.element_types.get(felt) != consumer.element_type:
        return None
    given = tuple(given_to(nodes, consumer, couplings))
    shapes = (graph.shapes[graph.makers[one.output].inputs[one.index]] for one in given)
    if not all(broadcasts(shape, graph.shapes[made]) for shape in shapes):
        return None
    return Behind(made, felt, given, len(graph.shapes[made]))


def reach(couplings: Couplings, made: str) -> tuple[tuple[Node, ...], str]:
    """The nodes behind a tensor that work place by place, to the last tensor that all they make of it goes through."""
    graph, live, taken = couplings.graph, {made}, dict[int, Node]()
    seen = {port.name for port in graph.outputs} | graph.captured
    nodes, felt = tuple[Node, ...](), made
    while live.isdisjoint(seen):
        readers = {node.position: node for name in live for node, _ in graph.readers.get(name, ())}
        following = readers.keys() - taken.keys()
        if not following or not works_alike(readers[min(following)], made, couplings):
            break
        node = taken[min(following)] = readers[min(following)]
        live = {name for name in (*live, node.outputs[0]) if is_read_by_others(name, taken, graph)}
        live = live or {node.outputs[0]}
        if len(live) == 1:
            nodes, felt = tuple(taken.values()), next(iter(live))
    return nodes, felt


def is_read_by_others(name: str, nodes: Mapping[int, Node], graph: Graph) -> bool:
    """Do other nodes than these, by position, read the tensor?"""
    return any(node.position not in nodes for node, _ in graph.readers.get(name, ()))


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Does a tensor of the one shape broadcast to the other?"""
    last = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(one in (1, other) for one, other in zip(shape, last, strict=True))


def works_alike(node: Node, made: str, couplings: Couplings) -> bool:
    """Does the node work place by place, and make one tensor of the shape of what the layer makes?"""
    facts, shapes = couplings.typing.stated[node.position].facts, couplings.graph.shapes
    outputs = [shapes.get(name) for name in node.outputs if name]
    return outputs == [shapes[made]] and any(isinstance(fact, Pointwise) for fact in facts)


def given_to(nodes: Sequence[Node], consumer: Consumer, couplings: Couplings) -> Iterator[Given]:
    """What the nodes read besides each other's outputs and constants of one number, or of one for each output."""
    typing, graph = couplings.typing, couplings.graph
    channels = typing.axes(typing.tensors[consumer.output])[consumer.made_at]
    within = {consumer.output, *(node.outputs[0] for node in nodes)}
    for node in nodes:
        for index, name in enumerate(node.inputs):
            if not name or name in within:
                continue
            fed, last = origin(name, graph)
            if not fed and is_narrow(couplings, (node.position, index), channels):
                continue
            constant = graph.constants.get(name)
            kind = constant.tensor.data_type if constant else graph.element_types[name]
            yield Given(node.outputs[0], index, kind, is_late=fed and last > consumer.node.position)


def is_narrow(couplings: Couplings, use: Use, channels: Axis) -> bool:
    """Has the constant one number, or one for each channel?"""
    typing, (position, index) = couplings.typing, use
    tensor = typing.at(couplings.graph.nodes[position], index)
    return tensor is not None and all(axis == channels for axis in typing.axes(tensor) if axis.size > 1)


def origin(name: str, graph: Graph) -> tuple[bool, int]:
    """Is the tensor made of inputs of the model, and the position of the last node that helps to make it."""
    fed, last, todo, seen = False, -1, [name], set[str]()
    inputs = {port.name for port in graph.inputs}
    while todo:
        one = todo.pop()
        maker = graph.makers.get(one)
        fed = fed or one in inputs
        if maker is None or one in seen:
            continue
        last = max(last, maker.position)
        seen.update(maker.outputs)
        todo.extend(maker.reads)
    return fed, last


class Felt:
    """What is behind a layer of a model, as a function of rows `[rows, outputs]` of what the layer makes."""

    def __init__(self, model: ModelProto, one: Behind, consumer: Consumer) -> None:
        self._names = (one.made, *(given.name_in(model) for given in one.given))
        kinds = (consumer.element_type, *(given.element_type for given in one.given))
        part = up_to(model, [one.felt], given=dict(zip(self._names, kinds, strict=True)))
        self._session = session_for(part, threads=1)
        self._rank, self._made_at = one.rank, consumer.made_at

    def __call__(self, made: np.ndarray, given: Sequence[np.ndarray]) -> np.ndarray:
        """What is felt, `[rows, outputs]`; what is given has that form too."""
        form = [1] * self._rank
        form[0 if self._made_at else 1], form[self._made_at] = made.shape
        rows = zip(self._names, (made, *given), strict=True)
        feed = {name: self._placed(part).reshape(form) for name, part in rows}
        (found,) = self._session.run(None, feed)
        return as_rows(found, self._made_at)

    def _placed(self, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(rows if self._made_at else rows.T)
