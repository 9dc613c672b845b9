"""
Bodies of control flow: how tensors pass between a node and the graphs among its attributes.

A body also reads tensors of the graphs around it by name; what is said here is how its own inputs and outputs meet
those of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from onnx import AttributeProto, GraphProto, NodeProto

from onnxprune.reading.graph import Body, Node, attribute_value, outer_names, standard


@dataclass(frozen=True, slots=True)
class Entry:
    """
    What a body's input holds: the node's input number `source`, or where `along` is given one position of it along
    that axis. Where there is no source, `value` is what it holds in the first run.
    """

    source: int | None
    along: int | None = None
    value: int | bool = 0


@dataclass(frozen=True, slots=True)
class Exit:
    """
    What becomes of a body's output: it is the node's output number `target`, or where `along` is given one position of
    it along that axis. `again` is the body's input that holds it in the next run.
    """

    target: int | None
    along: int | None = None
    again: int | None = None


@dataclass(frozen=True, slots=True)
class Passing:
    """How tensors come into one body and go out of it, in the order of the body's inputs and outputs."""

    attribute: str
    entries: tuple[Entry, ...]
    exits: tuple[Exit, ...]


def branches(node: Node) -> Iterator[Passing]:
    """One of two bodies runs, and its outputs are the node's."""
    for name, value in node.attributes.items():
        if isinstance(value, GraphProto):
            yield Passing(name, (), tuple(Exit(number) for number in range(len(node.outputs))))


def loop(node: Node) -> Iterator[Passing]:
    """
    The body runs again and again on what it made of the node's inputs from the third on; before these it takes the
    number of the run and whether to go on. What it makes beyond that is laid end to end, run by run.
    """
    carried, made = range(len(node.inputs) - 2), len(node.outputs)
    entries = (Entry(None), Entry(None, value=True), *(Entry(2 + number) for number in carried))
    results = (Exit(number, again=2 + number) for number in carried)
    stacked = (Exit(number, along=0) for number in range(len(carried), made))
    yield Passing("body", entries, (Exit(None, again=1), *results, *stacked))


def scan(node: Node) -> Iterator[Passing]:
    """The body runs over positions of the node's last inputs, and carries the first ones along."""
    scanned = int(node.attributes["num_scan_inputs"])
    carried = len(node.inputs) - scanned
    along = node.attributes.get("scan_input_axes") or [0] * scanned
    stacked = node.attributes.get("scan_output_axes") or [0] * (len(node.outputs) - carried)
    entries = (
        *(Entry(number) for number in range(carried)),
        *(Entry(carried + number, axis) for number, axis in enumerate(along)),
    )
    exits = (
        *(Exit(number, again=number) for number in range(carried)),
        *(Exit(carried + number, axis) for number, axis in enumerate(stacked)),
    )
    yield Passing("body", entries, exits)


CONDITION = 0
"""The input that decides which of two bodies runs."""

PASSINGS: dict[str, Callable[[Node], Iterator[Passing]]] = {"If": branches, "Loop": loop, "Scan": scan}
"""Every standard operator whose bodies are understood."""


def passings(node: Node) -> tuple[Passing, ...]:
    """How tensors pass through each of the node's bodies; nothing where that is not understood."""
    found = PASSINGS.get(node.op_type) if not node.domain else None
    return tuple(found(node)) if found else ()


@dataclass(frozen=True)
class Inventory:
    """
    Every node of a model with its proto, by position: those of the main graph in its order, then those of bodies.

    `bodies` holds those of each node that has some.
    """

    nodes: tuple[Node, ...]
    protos: tuple[NodeProto, ...]
    bodies: dict[int, tuple[Body, ...]] = field(default_factory=dict)


def inventory(graph: GraphProto) -> Inventory:
    """All nodes, each with a name of its own, made up from an output where the file has none."""
    protos: list[NodeProto] = list(graph.node)
    inside: list[int | None] = [None] * len(protos)
    bodies: dict[int, tuple[Body, ...]] = {}
    nodes: list[Node] = []
    taken: set[str] = set()
    for position, proto in enumerate(protos):  # grows while it is walked
        found: list[Body] = []
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                found.append(body_of(attribute, len(protos)))
                protos.extend(attribute.g.node)
                inside.extend([position] * len(attribute.g.node))
        if found:
            bodies[position] = tuple(found)
        nodes.append(node_of(proto, position, inside[position], taken))
    return Inventory(tuple(nodes), tuple(protos), bodies)


def body_of(attribute: AttributeProto, first: int) -> Body:
    """The body with the positions of its nodes, from `first` on."""
    graph = attribute.g
    return Body(
        attribute=attribute.name,
        inputs=tuple(port.name for port in graph.input),
        outputs=tuple(port.name for port in graph.output),
        nodes=tuple(range(first, first + len(graph.node))),
    )


def node_of(proto: NodeProto, position: int, inside: int | None, taken: set[str]) -> Node:
    """The node as a value; its name is taken from now on."""
    wanted = proto.name or next((f"{proto.op_type}:{name}" for name in proto.output if name), proto.op_type)
    name, attempt = wanted, 1
    while name in taken:
        attempt += 1
        name = f"{wanted}#{attempt}"
    taken.add(name)
    attributes = {attribute.name: attribute_value(attribute) for attribute in proto.attribute}
    bodies = [value for value in attributes.values() if isinstance(value, GraphProto)]
    return Node(
        name=name,
        position=position,
        domain=standard(proto.domain),
        op_type=proto.op_type,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes=attributes,
        captured=tuple(sorted({name for body in bodies for name in outer_names(body)})),
        inside=inside,
    )
