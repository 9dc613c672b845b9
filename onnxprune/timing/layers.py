"""
The layers of a model: a node that multiplies, and what follows it up to the next one.

ONNX Runtime fuses in a layer by itself what it fuses in the whole. Its inputs are tensors of other layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.reading.graph import Node
from onnxprune.reading.observing import Observation, observe
from onnxprune.rules.axes import Dim, leaves, width
from onnxprune.rules.facts import Implied, Macs, Stores
from onnxprune.rules.operation import Tensor

Widths = Mapping[Dim, int]


@dataclass(frozen=True, slots=True)
class Layer:
    """Nodes by their positions in the graph, the first one's name, and the Dims that its tensors have."""

    name: str
    operator: str
    positions: tuple[int, ...]
    dims: frozenset[Dim]


class Unbuildable(Exception):
    """A layer that cannot stand by itself."""


@dataclass(frozen=True)
class Layers:
    """The layers of a model in the order in which they run, and what is needed to build them at `batch` samples."""

    couplings: Couplings
    batch: int
    all: tuple[Layer, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "all", tuple(self._layers()))

    @cached_property
    def stored(self) -> dict[int, list[Stores]]:
        """Which sizes each node stores, by its position."""
        found: dict[int, list[Stores]] = {}
        for op, fact in facts_where(self.couplings.typing, Stores):
            found.setdefault(op.node.position, []).append(fact)
        return found

    @cached_property
    def implied(self) -> dict[int, list[Implied]]:
        """What of each node follows from a width, by its position."""
        found: dict[int, list[Implied]] = {}
        for op, fact in facts_where(self.couplings.typing, Implied):
            found.setdefault(op.node.position, []).append(fact)
        return found

    @cached_property
    def seen(self) -> Observation:
        """The model as it is at this batch."""
        graph = self.couplings.graph
        shapes = dict(graph.input_shapes)
        if graph.has_batch:
            shapes = {name: (self.batch, *shape[1:]) for name, shape in shapes.items()}
        if shapes != dict(graph.input_shapes):
            return observe(graph.model, graph.inputs, shapes)
        return Observation(graph.input_shapes, graph.shapes, graph.values, graph.element_types)

    @cached_property
    def at_batch(self) -> dict[Dim, int]:
        """The widths of the Dims that count samples."""
        return dict.fromkeys(self.couplings.batch, self.batch)

    def _layers(self) -> Iterator[Layer]:
        """Each node joins the layer of what it reads last; one that multiplies begins a new one."""
        graph, typing = self.couplings.graph, self.couplings.typing
        heavy = {graph.in_main(op.node.position) for op, _ in facts_where(typing, Macs)}
        layer_of: dict[str, int] = {}
        members: dict[int, list[Node]] = {}
        for node in graph.main:
            if all(name in typing.knowable for name in node.outputs if name):
                continue
            number = max((layer_of.get(name, -1) for name in node.reads), default=-1)
            number = node.position if node.position in heavy else number
            layer_of |= dict.fromkeys(node.outputs, number)
            members.setdefault(number, []).append(node)
        for _, nodes in sorted(members.items()):
            dims = frozenset(dim for node in nodes for dim in self._dims(node))
            yield Layer(nodes[0].name, nodes[0].label, tuple(node.position for node in nodes), dims)

    def _dims(self, node: Node) -> Iterator[Dim]:
        """The Dims of what the node reads and makes."""
        typing = self.couplings.typing
        op = typing.stated[node.position].op
        for tensor in (*op.tensors, *op.results, *op.of_bodies):
            for axis in typing.axes(tensor):
                yield from leaves(axis)

    def shape(self, tensor: Tensor, widths: Widths) -> tuple[int, ...]:
        """The tensor's shape, from its types; as seen where its types tell another one at the widths it has."""
        axes = self.couplings.typing.axes(tensor)
        plain = tuple(width(axis, self.at_batch) for axis in axes)
        seen = self.seen.shapes.get(tensor.name, plain)
        if len(seen) != len(plain):
            raise Unbuildable(f"{tensor.name!r} has another number of axes at this batch")
        return tuple(
            width(axis, widths) if size == before else size
            for axis, size, before in zip(axes, seen, plain, strict=True)
        )


def numbers_of(couplings: Couplings) -> dict[str, int]:
    """The position of each node of the main graph, by its first output that is used."""
    return {
        next(name for name in node.outputs if name): node.position for node in couplings.graph.main if any(node.outputs)
    }


def layers_at(couplings: Couplings, batch: int) -> Layers:
    """The layers of the model at so many samples a run, or, where it does not run so, at those it was read with."""
    layers = Layers(couplings, batch)
    try:
        _ = layers.seen
    except Exception:  # ONNX Runtime raises many kinds; each means "not at this batch"
        own = next(iter(couplings.graph.input_shapes.values()), (batch,))
        return Layers(couplings, own[0] if own else batch)
    return layers
