"""Give every axis a Dim, let the rules speak, and solve what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnxprune.coupling.unification import Reason, Solver
from onnxprune.reading.graph import Constant, Graph, Node, Shape
from onnxprune.reading.observing import Observation, other_settings
from onnxprune.rules.axes import Axis, Dim, leaves, width
from onnxprune.rules.facts import (
    Averaged,
    Contracted,
    Equal,
    Fact,
    Frozen,
    Inexact,
    Lookup,
    Measured,
    Normalized,
)
from onnxprune.rules.operation import BodyOf, Op, Tensor
from onnxprune.rules.registry import facts_of, refuse

SHARED_ELEMENTS = 1024
"""
Indices and flags with fewer elements, and any weight that is a vector, are typed at each use: that unrelated layers
share them is an exporter's thrift. A shared matrix is tied on purpose.
"""

LOOKED_UP = 4096
"""Indices with one reader are its own up to this size: as many positions may be looked up one by one."""

F = TypeVar("F")

Use = tuple[int, int]
"""A node's position in the graph and the number of one of its inputs."""


@dataclass(frozen=True, slots=True)
class Stated:
    """One node as the rules saw it, and what they said."""

    op: Op
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Typing:
    """The solved types: of each tensor's axes, and of each use of a constant that is typed by use."""

    solver: Solver
    stated: tuple[Stated, ...]
    tensors: Mapping[str, Tensor]
    uses: Mapping[Use, Tensor]
    knowable: frozenset[str]
    """Tensors whose numbers follow from constants and from shapes alone."""

    other_shapes: tuple[Mapping[str, Shape], ...]
    """Shapes of all computed tensors at other settings of the dynamic sizes."""

    def at(self, node: Node, index: int) -> Tensor | None:
        """What `node` sees at input `index`."""
        name = node.inputs[index]
        return self.uses.get((node.position, index)) or self.tensors.get(name)

    def axes(self, tensor: Tensor) -> tuple[Axis, ...]:
        """The tensor's axes in terms of free and frozen Dims."""
        return tuple(self.solver.resolve(axis) for axis in tensor.axes)


def solve_types(graph: Graph) -> Typing:
    """Types of every axis in the graph."""
    solver = Solver()
    tensors = {name: Tensor(name, tuple(Dim(size) for size in shape)) for name, shape in graph.shapes.items()}
    uses: dict[Use, Tensor] = {}
    said: dict[int, Stated] = {}
    knowable: set[str] = set(graph.constants)
    others = tuple(other_settings(graph.model, graph.inputs, graph.input_shapes))
    for node in graph.in_order:
        op = seen_by(node, graph, tensors, uses, knowable, others)
        facts = facts_of(op) if understood(node, graph) else tuple(refuse(op, unreadable(node)))
        said[node.position] = Stated(op, facts)
        if any(isinstance(fact, Measured) for fact in facts) or follows(node, knowable):
            knowable.update(node.outputs)
    stated = [said[node.position] for node in graph.nodes]
    for one in stated:
        for fact in one.facts:
            hear(fact, one.op, solver)
        for axis in unmentioned(one, graph):
            solver.freeze(axis, Reason(f"{one.op.node.label} says nothing about it", one.op.node.name, by_nature=True))
    for port in (*graph.inputs, *graph.outputs):
        side = "input" if port in graph.inputs else "output"
        for axis in tensors[port.name].axes if port.name in tensors else ():
            solver.freeze(axis, Reason(f"it is an axis of the model's {side} {port.name!r}"))
    for name in knowable & graph.given_out:
        for measured in measured_behind(name, graph, stated):
            solver.freeze(measured, Reason("its width is told to the output of the model, or of a body"))
    for one in stated:  # last, when it is known what may go
        for fact in one.facts:
            if isinstance(fact, Lookup):
                solver.look_up(fact.whole, fact.found, fact.positions, one.op.node.name)
    typed = (*tensors.items(), *((tensor.name, tensor) for tensor in uses.values()))
    for other in others:
        freeze_what_moves(solver, [(tensor, other.shapes.get(name, tensor.shape)) for name, tensor in typed])
    shapes = tuple(other.shapes for other in others)
    return Typing(solver, tuple(stated), tensors, uses, frozenset(knowable), shapes)


def measured_behind(name: str, graph: Graph, stated: Sequence[Stated]) -> Iterator[Axis]:
    """The axes whose widths the numbers of a computed tensor come from."""
    pending, seen = [name], set[str]()
    while pending:
        tensor = pending.pop()
        maker = graph.makers.get(tensor)
        if maker is None or tensor in seen:
            continue
        seen.add(tensor)
        measured = [fact for fact in stated[maker.position].facts if isinstance(fact, Measured)]
        yield from (axis for fact in measured for axis in fact.sizes)
        pending.extend(maker.inputs if not measured else ())


def freeze_what_moves(solver: Solver, observed: Sequence[tuple[Tensor, Shape]]) -> None:
    """
    Freeze every axis whose type does not hold at another setting of the dynamic sizes.

    A table that is cut at a dynamic length has the type  length + rest  at one setting only: the rest moves.
    """
    for tensor, shape in observed:
        for dim in tensor.axes if tensor.rank != len(shape) else ():
            solver.freeze(dim, Reason(f"{tensor.name!r} has another number of axes at another dynamic size"))
    axes = [pair for tensor, shape in observed for pair in zip(tensor.axes, shape, strict=False)]
    resolved = [(solver.resolve(axis), size) for axis, size in axes]
    sizes: dict[Dim, int] = {}
    for axis, size in resolved:
        if isinstance(axis, Dim):
            sizes.setdefault(axis, size)
    for axis, size in resolved:
        if width(axis, sizes) != size or (isinstance(axis, Dim) and size != axis.size):
            solver.freeze(axis, Reason("its positions move with a dynamic size"))


def seen_by(
    node: Node,
    graph: Graph,
    tensors: Mapping[str, Tensor],
    uses: dict[Use, Tensor],
    knowable: set[str],
    others: Sequence[Observation],
) -> Op:
    """The node with its typed tensors; constants that are typed by use get fresh Dims here."""

    def at(index: int, name: str) -> Tensor | None:
        constant = graph.constants.get(name)
        if constant is not None and typed_by_use(constant, graph):
            axes = tensors[name].axes if takes_a_part else tuple(Dim(size) for size in constant.shape)
            uses[node.position, index] = Tensor(name, axes, small_value(constant), own=True)
            return uses[node.position, index]
        tensor = tensors.get(name)
        if tensor is None:
            return None
        value = graph.values.get(name) if name in knowable else None
        if value is not None and value.dtype == bool and any(differs(value, name, other) for other in others):
            value = None  # what decides must decide the same at every setting
        return Tensor(name, tensor.axes, small_value(constant) if constant else value)

    takes_a_part = follows(node, knowable) and cuts_a_constant(node, graph)
    inputs = tuple(at(index, name) for index, name in enumerate(node.inputs))
    outputs = tuple(tensors.get(name) for name in node.outputs)
    domain_version = graph.opsets.get(node.domain, 0)
    bodies = tuple(
        BodyOf(tuple(map(tensors.get, body.inputs)), tuple(map(tensors.get, body.outputs)))
        for body in graph.bodies.get(node.position, ())
    )
    return Op(node, inputs, outputs, domain_version, bodies)


def differs(value: np.ndarray, name: str, other: Observation) -> bool:
    """Has the tensor other numbers at another setting?"""
    return not np.array_equal(value, other.values.get(name, value))


def cuts_a_constant(node: Node, graph: Graph) -> bool:
    """Is every output smaller than the constant read first? Such parts belong together, however often it is read."""
    whole = graph.constants.get(node.inputs[0]) if node.inputs else None
    sizes = [math.prod(graph.shapes.get(name, ())) for name in node.outputs if name]
    return whole is not None and all(size < whole.size for size in sizes)


def typed_by_use(constant: Constant, graph: Graph) -> bool:
    vector = sum(size > 1 for size in constant.shape) <= 1
    alone = len(graph.readers.get(constant.name, ())) == 1 and constant.size <= LOOKED_UP
    thrift = vector if constant.is_weight else constant.size < SHARED_ELEMENTS or alone
    return thrift and constant.name not in graph.given_out


def small_value(constant: Constant) -> np.ndarray | None:
    """The constant's numbers, where a rule may want them."""
    return constant.array() if constant.size <= (SHARED_ELEMENTS if constant.is_weight else LOOKED_UP) else None


def understood(node: Node, graph: Graph) -> bool:
    """Are all its tensors tensors of known shape?"""
    names = [name for name in (*node.inputs, *node.outputs) if name]
    return all(name in graph.shapes for name in names)


def unreadable(node: Node) -> str:
    if node.inside is None:
        return f"{node.label} works on more than tensors"
    return f"{node.label} stands in a body that does not run at the sizes tried, or works on more than tensors"


def follows(node: Node, knowable: set[str]) -> bool:
    """Does the node compute from constants and shapes alone?"""
    return not node.has_body and all(name in knowable for name in node.inputs if name)


def hear(fact: Fact, op: Op, solver: Solver) -> None:
    """Take one fact into the solution."""
    label, node = op.node.label, op.node.name
    match fact:
        case Equal(left, right):
            solver.equate(left, right, node)
        case Frozen(axis, text, by_nature):
            solver.freeze(axis, Reason(text, node, by_nature))
        case Inexact(axis, text):
            solver.mark_inexact(axis, Reason(text, node))
        case Averaged() | Normalized():
            for axis in averaged_axes(fact, op):
                solver.mark_inexact(axis, Reason(f"{label} takes a mean over it", node))


def averaged_axes(fact: Averaged | Normalized, op: Op) -> Iterator[Axis]:
    """The axes that the node takes a mean over."""
    if isinstance(fact, Averaged):
        yield fact.tensor[fact.axis]
        return
    yield from (op.input(fact.added[0])[number] for number in fact.over)
    if fact.within is not None:
        yield fact.within


def unmentioned(one: Stated, graph: Graph) -> Iterator[Dim]:
    """Axes of the node's constants of which its rule says nothing: scales, bounds, indices."""
    mentioned = {dim for fact in one.facts for axis in axes_in(fact) for dim in leaves(axis)}
    for tensor in one.op.tensors:
        if tensor.name in graph.constants:
            yield from (axis for axis in tensor.axes if axis.size > 1 and axis not in mentioned)


def axes_in(fact: Fact) -> tuple[Axis, ...]:
    """The axes that a fact puts in relation to others."""
    match fact:
        case Equal(left, right):
            return left, right
        case Lookup(whole, found):
            return whole, found
        case Frozen(axis, _, _) | Inexact(axis, _):
            return (axis,)
        case Contracted(tensor, number) | Averaged(tensor, number):
            return (tensor[number],)
        case _:
            return ()


def facts_in_main(typing: Typing, kind: type[F]) -> Iterator[tuple[Op, F]]:
    """Every fact of one kind that was said of a node of the main graph."""
    return ((op, fact) for op, fact in facts_where(typing, kind) if op.node.inside is None)


def facts_where(typing: Typing, kind: type[F]) -> Iterator[tuple[Op, F]]:
    """Every fact of one kind with the node it was said of."""
    for one in typing.stated:
        for fact in one.facts:
            if isinstance(fact, kind):
                yield one.op, fact
