"""
Where the zeroed model is zero: the base of the word *exact*.

Zeroing a removed position of every initializer equals removing it when each sum that runs over the position gets a
zero term from it, and nothing divides by those zeros. This follows zeros from the initializers through the graph, by
what the rules say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.coupling.codings import PLAIN, Coding, Level, codings_of, level_of
from onnxprune.coupling.types import Stated, Typing, Use, facts_where
from onnxprune.coupling.unification import Reason
from onnxprune.reading.graph import Graph
from onnxprune.rules.axes import Dim, leaves
from onnxprune.rules.facts import AllOf, AnyOf, Condition, Contracted, Divisor, HoldersOf, Quantized, Unsummed, Zero
from onnxprune.rules.operation import Op, Tensor


@dataclass(frozen=True, slots=True)
class ZeroSet:
    """The Dims whose removed positions hold zeros, or what `level` says stands for them; or `everywhere`: all do."""

    dims: frozenset[Dim] = frozenset()
    everywhere: bool = False
    level: Level = PLAIN

    def at(self, level: Level) -> ZeroSet:
        """As read by a node for which `level` stands for zero."""
        return replace(self, level=PLAIN) if self.level == level else ZeroSet()

    def __contains__(self, dim: Dim) -> bool:
        return self.everywhere or dim in self.dims


@dataclass(frozen=True, slots=True)
class Zeroing:
    """
    How constants are zeroed, by their uses: `divisors` keep their numbers, and in quantised ones the level of their
    coding stands for zero.
    """

    divisors: frozenset[Use]
    codings: Mapping[Use, Coding]

    def divides(self, name: str, use: Use | None, graph: Graph) -> bool:
        """Is the constant left alone, at this use, or at any where it is one for all of them (use None)?"""
        return any(one in self.divisors for one in uses_of(name, use, graph))

    def coding(self, name: str, use: Use | None, graph: Graph) -> Coding | None:
        """What the constant's numbers stand for, at this use or where it is one for all (use None); None: plain."""
        return next((self.codings[one] for one in uses_of(name, use, graph) if one in self.codings), None)

    def level(self, name: str, use: Use | None, graph: Graph) -> Level:
        """What stands for zero in the constant there."""
        coding = self.coding(name, use, graph)
        return PLAIN if coding is None else coding.level


def uses_of(name: str, use: Use | None, graph: Graph) -> Iterator[Use]:
    """The use itself, or all uses of the constant of that name."""
    yield from [use] if use else ((node.position, index) for node, index in graph.readers.get(name, ()))


def zeroing_of(graph: Graph, typing: Typing) -> Zeroing:
    """How constants are zeroed."""
    return Zeroing(frozenset(divisor_uses(graph, typing)), codings_of(graph, typing))


@dataclass(frozen=True, slots=True)
class Leak:
    """What zeroing alone does not close: a sum that gets something from zeroed positions, or zeros that divide."""

    op: Op
    fact: Contracted | Divisor
    dims: frozenset[Dim]

    @property
    def reason(self) -> Reason:
        """Why a removal there is inexact."""
        told = "sums over it where its zeroed positions are not zero"
        if isinstance(self.fact, Divisor):
            told = "has no value where its zeroed positions are zero"
        return Reason(f"{self.op.node.label} {told}", self.op.node.name)


def leaks_of(graph: Graph, typing: Typing, zeroing: Zeroing) -> Iterator[Leak]:
    """Every place where the zeroed model differs from one without the zeroed positions."""
    known = zeros_known(graph, typing, zeroing)
    for one in typing.stated:
        read = Held(one, graph, typing, known, zeroing).read
        for fact in one.facts:
            if isinstance(fact, Contracted | Divisor):
                dims = frozenset(leaking(fact, read, typing))
                if dims:
                    yield Leak(one.op, fact, dims)


class Held:
    """
    The zero set of each tensor that a node sees, by the tensor's identity: as the tensor holds it, and as the node
    reads it, that is, where it equals what the node takes for zero.
    """

    def __init__(
        self, one: Stated, graph: Graph, typing: Typing, known: Mapping[str, ZeroSet], zeroing: Zeroing
    ) -> None:
        self._one, self._typing = one, typing
        self._points = {id(fact.tensor): level_of(fact, graph) for fact in one.facts if isinstance(fact, Quantized)}
        self._held = zero_sets_at(one.op, graph, typing, known, zeroing)
        self.read = {key: zeros.at(self._points.get(key, PLAIN)) for key, zeros in self._held.items()}

    def outputs(self) -> Iterator[tuple[str, ZeroSet]]:
        """The zero sets of what the node makes, and of what goes into its bodies."""
        for fact in self._one.facts:
            if isinstance(fact, Zero):
                zeros = zero_where(fact.when, fact.output, self._held if fact.moved else self.read, self._typing)
                moved = zeros if zeros.level.axis is None else ZeroSet()
                made = replace(zeros, level=self._points.get(id(fact.output), PLAIN))
                yield fact.output.name, limited(moved if fact.moved else made, fact, self._typing)


def zeros_known(graph: Graph, typing: Typing, zeroing: Zeroing) -> dict[str, ZeroSet]:
    """
    The zero set of each computed tensor.

    What a body hands on to its next run is zero where it was zero in this one: all of it is taken to be zero at first,
    and the walk is repeated as long as that turns out to be too much.
    """
    taken = {name for bodies in graph.bodies.values() for body in bodies for name in body.inputs}
    told = {fact.output.name for _, fact in facts_where(typing, Zero)} if taken else set()
    known = dict.fromkeys(taken & told, ZeroSet(everywhere=True))
    while True:
        before = dict(known)
        for node in graph.in_order:
            known.update(Held(typing.stated[node.position], graph, typing, known, zeroing).outputs())
        if not graph.bodies or known == before:
            return known


def leaking(fact: Contracted | Divisor, at: Mapping[int, ZeroSet], typing: Typing) -> Iterator[Dim]:
    """The Dims whose zeroed positions still count in the node's sum, or whose zeros it would divide by."""
    if isinstance(fact, Divisor):
        yield from (dim for dim in dims_of(fact.tensor, typing) if dim in at[id(fact.tensor)])
        return
    operands = [at[id(operand)] for operand in fact.by]
    for dim in leaves(typing.solver.resolve(fact.sums)):
        if not any(dim in operand for operand in operands):
            yield dim


def zero_sets_at(
    op: Op, graph: Graph, typing: Typing, known: Mapping[str, ZeroSet], zeroing: Zeroing
) -> dict[int, ZeroSet]:
    """The zero set of each input tensor of the node, by the tensor's identity."""
    found: dict[int, ZeroSet] = {}
    for index, tensor in enumerate(op.inputs):
        if tensor is None:
            continue
        use = (op.node.position, index) if (op.node.position, index) in typing.uses else None
        if tensor.name not in graph.constants:
            found[id(tensor)] = known.get(tensor.name, ZeroSet())
        elif zeroing.divides(tensor.name, use, graph):
            found[id(tensor)] = ZeroSet()
        else:
            level = zeroing.level(tensor.name, use, graph)
            found[id(tensor)] = ZeroSet(dims_of(tensor, typing), nothing_but(level, tensor.value), level)
    for tensor in op.of_bodies:
        own = ZeroSet(dims_of(tensor, typing)) if tensor.name in graph.constants else ZeroSet()
        found.setdefault(id(tensor), known.get(tensor.name, own))
    return found


def nothing_but(level: Level, value: np.ndarray | None) -> bool:
    """Is every number the one that stands for zero?"""
    return value is not None and value.dtype.kind in "fiub" and not level.point and bool((value == level.number).all())


def dims_of(tensor: Tensor, typing: Typing) -> frozenset[Dim]:
    return frozenset(leaf for axis in typing.axes(tensor) for leaf in leaves(axis))


def zero_where(condition: Condition, output: Tensor, at: Mapping[int, ZeroSet], typing: Typing) -> ZeroSet:
    """The Dims of the output for which the condition holds."""
    match condition:
        case Tensor():
            return at[id(condition)]
        case Unsummed(tensor, summed):
            axes = (axis for number, axis in enumerate(typing.axes(tensor)) if number not in summed)
            zeros = at[id(tensor)]
            return ZeroSet(zeros.dims & {leaf for axis in axes for leaf in leaves(axis)}, zeros.everywhere)
        case AnyOf(terms):
            sets = [zero_where(term, output, at, typing) for term in terms]
            return ZeroSet(frozenset().union(*(s.dims for s in sets)), any(s.everywhere for s in sets))
        case AllOf(terms):
            sets = [zero_where(term, output, at, typing) for term in terms]
            some = [s.dims for s in sets if not s.everywhere]
            return ZeroSet(frozenset.intersection(*some), False) if some else ZeroSet(everywhere=True)
        case HoldersOf(terms, filler):
            holders = [(dims_of(term, typing), at[id(term)]) for term in terms]
            levels = {zeros.level for _, zeros in holders}
            if len(levels) > 1 or (filler is not None and levels != {Level(filler)}):
                return ZeroSet()
            lost = frozenset(dim for dims, zeros in holders for dim in dims if dim not in zeros)
            everywhere = all(zeros.everywhere for _, zeros in holders)
            return ZeroSet(dims_of(output, typing) - lost, everywhere, levels.pop())


def limited(zeros: ZeroSet, fact: Zero, typing: Typing) -> ZeroSet:
    """
    Only Dims that stand in one axis of the output: with two, each alone would have to make a zero.

    That it does where the output has the zeros of a single tensor in which the Dim stands as often.
    """
    found = axes_with(fact.output, typing)
    source = axes_with(fact.when, typing) if isinstance(fact.when, Tensor) else Counter[Dim]()
    return replace(zeros, dims=frozenset(dim for dim in zeros.dims if found[dim] in (1, source[dim])))


def axes_with(tensor: Tensor, typing: Typing) -> Counter[Dim]:
    """In how many axes of the tensor each Dim stands."""
    return Counter(dim for axis in typing.axes(tensor) for dim in set(leaves(axis)))


def divisor_uses(graph: Graph, typing: Typing) -> Iterator[Use]:
    """
    Uses of constants that divide, directly or through nodes that compute from constants alone.

    A single number that is computed, such as a sum of them all, does not become zero with some of them.
    """
    pending = [(op.node, op.inputs.index(fact.tensor)) for op, fact in facts_where(typing, Divisor)]
    while pending:
        node, index = pending.pop()
        name = node.inputs[index]
        if name in graph.makers and math.prod(graph.shapes.get(name, ())) == 1:
            continue
        if name in graph.constants:
            yield node.position, index
        elif name in typing.knowable:
            maker = graph.makers[name]
            pending.extend((maker, number) for number, source in enumerate(maker.inputs) if source)
