"""
Where the zeroed model is zero: the base of the word *exact*.

Zeroing a removed position of every initializer equals removing it when each sum that runs over the position gets a
zero term from it, and nothing divides by those zeros. This follows zeros from the initializers through the graph, by
what the rules say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnxprune.coupling.types import Typing, Use, facts_where
from onnxprune.coupling.unification import Reason
from onnxprune.reading.graph import Graph
from onnxprune.rules.axes import Dim, leaves
from onnxprune.rules.facts import AllOf, AnyOf, Condition, Contracted, Divisor, HoldersOf, Unsummed, Zero
from onnxprune.rules.operation import Op, Tensor


@dataclass(frozen=True, slots=True)
class ZeroSet:
    """The Dims whose removed positions hold zeros; or `everywhere`: all numbers are zero."""

    dims: frozenset[Dim] = frozenset()
    everywhere: bool = False

    def __contains__(self, dim: Dim) -> bool:
        return self.everywhere or dim in self.dims


def mark_inexact_sinks(graph: Graph, typing: Typing) -> frozenset[Use]:
    """
    Mark every Dim inexact that some sink sums over although its removed positions are not zero there.

    Returns the uses of constants that divide, whose numbers zeroing leaves alone.
    """
    divisors = frozenset(divisor_uses(graph, typing))
    known: dict[str, ZeroSet] = {}
    for one in typing.stated:
        at = zero_sets_at(one.op, graph, typing, known, divisors)
        for fact in one.facts:
            if isinstance(fact, Zero):
                known[fact.output.name] = limited(zero_where(fact.when, fact.output, at, typing), fact.output, typing)
            elif isinstance(fact, Contracted):
                mark_sink(fact, one.op, at, typing)
            elif isinstance(fact, Divisor):
                mark_divisor(fact, one.op, at, typing)
    return divisors


def mark_sink(fact: Contracted, op: Op, at: Mapping[int, ZeroSet], typing: Typing) -> None:
    operands = [at[id(operand)] for operand in fact.by]
    for dim in leaves(typing.solver.resolve(fact.sums)):
        if not any(dim in operand for operand in operands):
            text = f"{op.node.label} sums over it where its zeroed positions are not zero"
            typing.solver.mark_inexact(dim, Reason(text, op.node.name))


def mark_divisor(fact: Divisor, op: Op, at: Mapping[int, ZeroSet], typing: Typing) -> None:
    for dim in dims_of(fact.tensor, typing):
        if dim in at[id(fact.tensor)]:
            text = f"{op.node.label} has no value where its zeroed positions are zero"
            typing.solver.mark_inexact(dim, Reason(text, op.node.name))


def zero_sets_at(
    op: Op, graph: Graph, typing: Typing, known: Mapping[str, ZeroSet], divisors: frozenset[Use]
) -> dict[int, ZeroSet]:
    """The zero set of each input tensor of the node, by the tensor's identity."""
    found: dict[int, ZeroSet] = {}
    for index, tensor in enumerate(op.inputs):
        if tensor is None:
            continue
        if tensor.name not in graph.constants:
            found[id(tensor)] = known.get(tensor.name, ZeroSet())
        elif (op.node.position, index) in divisors or divides_elsewhere(
            tensor.name, op, index, graph, typing, divisors
        ):
            found[id(tensor)] = ZeroSet()
        else:
            nothing_but_zeros = (
                tensor.value is not None and tensor.value.dtype.kind in "fiub" and not tensor.value.any()
            )
            found[id(tensor)] = ZeroSet(dims_of(tensor, typing), everywhere=nothing_but_zeros)
    return found


def divides_elsewhere(name: str, op: Op, index: int, graph: Graph, typing: Typing, divisors: frozenset[Use]) -> bool:
    """Is the constant one for all its uses, and a divisor at another?"""
    if (op.node.position, index) in typing.uses:
        return False
    return any((node.position, number) in divisors for node, number in graph.readers[name])


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
        case HoldersOf(terms):
            holders = [(dims_of(term, typing), at[id(term)]) for term in terms]
            lost = frozenset(dim for dims, zeros in holders for dim in dims if dim not in zeros)
            everywhere = all(zeros.everywhere for _, zeros in holders)
            return ZeroSet(dims_of(output, typing) - lost, everywhere)


def limited(zeros: ZeroSet, output: Tensor, typing: Typing) -> ZeroSet:
    """Only Dims that stand in one axis of the output: with two, each alone would have to make a zero."""
    axes_with = Counter(dim for axis in typing.axes(output) for dim in set(leaves(axis)))
    return ZeroSet(frozenset(dim for dim in zeros.dims if axes_with[dim] == 1), zeros.everywhere)


def divisor_uses(graph: Graph, typing: Typing) -> Iterator[Use]:
    """Uses of constants that divide, directly or through nodes that compute from constants alone."""
    pending = [(op.node, op.inputs.index(fact.tensor)) for op, fact in facts_where(typing, Divisor)]
    while pending:
        node, index = pending.pop()
        name = node.inputs[index]
        if name in graph.constants:
            yield node.position, index
        elif name in typing.knowable:
            maker = graph.makers[name]
            pending.extend((maker, number) for number, source in enumerate(maker.inputs) if source)
