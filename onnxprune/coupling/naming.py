"""What groups are called, and the nodes that read what they slice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from onnxprune.coupling.types import Typing
from onnxprune.reading.graph import Graph
from onnxprune.rules.axes import Dim, leaves
from onnxprune.rules.operation import Tensor


def readers_of(graph: Graph, typing: Typing) -> Iterator[tuple[str, frozenset[Dim]]]:
    """Each node that reads constants, and the Dims that stand in these."""
    for node in graph.nodes:
        read = [typing.at(node, index) for index, name in enumerate(node.inputs) if name in graph.constants]
        if read:
            yield node.name, dims_in(typing, read)


def makers_of(typing: Typing) -> Iterator[tuple[str, frozenset[Dim], frozenset[Dim]]]:
    """Each node that makes data of weights: the Dims of these weights, and of what it makes."""
    for one in typing.stated:
        weights = [tensor for tensor in one.op.tensors if tensor.name in typing.knowable]
        made = [tensor for tensor in one.op.results if tensor.name not in typing.knowable]
        if weights and made:
            yield one.op.node.name, dims_in(typing, weights), dims_in(typing, made)


def dims_in(typing: Typing, tensors: Iterable[Tensor | None]) -> frozenset[Dim]:
    """Every Dim that stands in an axis of these tensors."""
    axes = (axis for tensor in tensors if tensor is not None for axis in typing.axes(tensor))
    return frozenset(leaf for axis in axes for leaf in leaves(axis))


def layer_name(family: tuple[Dim, ...], makers: Sequence[tuple[str, frozenset[Dim], frozenset[Dim]]]) -> str:
    """The first node that makes the channels from data and weights; "" if there is none."""
    wanted = set(family)
    return next(
        (name for name, read, made in makers if not read.isdisjoint(wanted) and not made.isdisjoint(wanted)), ""
    )


def unique_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names that occur more than once get ":1", ":2" ... behind them."""
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        unique.append(f"{name}:{counts[name]}" if names.count(name) > 1 else name)
    return tuple(unique)
