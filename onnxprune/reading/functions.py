"""
Local functions, taken apart: every call gives way to the function's nodes.

So each use of a function is analysed and pruned for itself. Where all uses come out alike, they are made a function
again (`onnxprune.rewriting.outlining`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from onnxprune.reading.graph import names_in, standard
from onnxprune.reading.names import bodies_of

Key = tuple[str, str, str]
"""What tells a function from all others: domain, name, overload."""


@dataclass(frozen=True)
class Call:
    """
    A call that gave way: `node` as it stood, and the nodes in its place.

    `place` begins the name of each of these, and of each tensor that only they know. `inner` are the calls among the
    function's nodes, by the number of the node.
    """

    place: str
    node: NodeProto
    function: FunctionProto
    nodes: tuple[NodeProto, ...]
    inner: Mapping[int, Call]


@dataclass(frozen=True)
class Inlining:
    """The calls of a model's main graph that gave way, and the model as it was."""

    source: ModelProto
    calls: tuple[Call, ...]


def inlined(model: ModelProto) -> tuple[ModelProto, Inlining | None]:
    """The model without local functions, where it has some, and what it takes to bring them back."""
    functions = {key_of(function): function for function in model.functions}
    if not functions:
        return model, None
    made = ModelProto()
    made.CopyFrom(model)
    inliner = Inliner(functions, {standard(entry.domain): entry.version for entry in model.opset_import}, model.graph)
    del made.graph.node[:]
    made.graph.node.extend(node for item in inliner.items(model.graph.node, "") for node in flat(item))
    del made.opset_import[:]
    made.opset_import.extend(model.opset_import)
    for domain, version in inliner.opsets.items():
        if all(standard(entry.domain) != domain for entry in model.opset_import):
            made.opset_import.add(domain=domain, version=version)
    left = called(made.graph, functions)
    del made.functions[:]
    made.functions.extend(function for key, function in functions.items() if key in left)
    return made, Inlining(model, tuple(inliner.calls))


def key_of(one: FunctionProto | NodeProto) -> Key:
    """The function, or the function that the node would call."""
    name = one.name if isinstance(one, FunctionProto) else one.op_type
    return standard(one.domain), name, one.overload


def called(graph: GraphProto, functions: Mapping[Key, FunctionProto]) -> set[Key]:
    """The functions that the graph still calls, directly or by way of others."""
    found: set[Key] = set()
    pending = list(graph.node)
    while pending:
        node = pending.pop()
        pending.extend(inner for body in bodies_of(node) for inner in body.node)
        if key_of(node) in functions and key_of(node) not in found:
            found.add(key_of(node))
            pending.extend(functions[key_of(node)].node)
    return found


def flat(item: NodeProto | Call) -> Iterator[NodeProto]:
    """The node, or the nodes in place of a call, down to the last."""
    if isinstance(item, NodeProto):
        yield item
        return
    for number, node in enumerate(item.nodes):
        yield from flat(item.inner.get(number, node))


class Inliner:
    """Takes calls apart; `opsets` grows by those of the functions, `calls` by those of the main graph."""

    def __init__(self, functions: Mapping[Key, FunctionProto], opsets: dict[str, int], graph: GraphProto) -> None:
        self.opsets = opsets
        self.calls: list[Call] = []
        self._functions = functions
        self._taken = {*names_in(graph), *(node.name for node in graph.node)}

    def items(self, nodes: Sequence[NodeProto], place: str) -> list[NodeProto | Call]:
        """The nodes, calls among them taken apart."""
        found: list[NodeProto | Call] = []
        for node in nodes:
            function = self._functions.get(key_of(node))
            if function is None or not self._suits(function):
                found.append(node)
                continue
            call = self._taken_apart(node, function, place)
            found.append(call)
            if not place:
                self.calls.append(call)
        return found

    def _suits(self, function: FunctionProto) -> bool:
        """Does the function speak the model's opsets, and does it make all that it gives?"""
        own = {standard(entry.domain): entry.version for entry in function.opset_import}
        if any(self.opsets.get(domain, version) != version for domain, version in own.items()):
            return False
        self.opsets |= own
        return set(function.input).isdisjoint(function.output)

    def _taken_apart(self, node: NodeProto, function: FunctionProto, around: str) -> Call:
        place = self._place(around + (node.name.removeprefix(around) or node.op_type))
        names = dict.fromkeys(function.input, "")
        names |= dict(zip(function.input, node.input, strict=False))
        names |= {formal: name for formal, name in zip(function.output, node.output, strict=False) if name}
        given = {attribute.name: attribute for attribute in (*function.attribute_proto, *node.attribute)}
        nodes = []
        for number, inner in enumerate(function.node):
            copy = NodeProto()
            copy.CopyFrom(inner)
            placed(copy, place, names, given)
            copy.name = f"{place}{inner.name or f'{inner.op_type}.{number}'}"
            nodes.append(copy)
        items = self.items(nodes, place)
        inner_calls = {number: item for number, item in enumerate(items) if isinstance(item, Call)}
        return Call(place, node, function, tuple(nodes), inner_calls)

    def _place(self, wanted: str) -> str:
        """A beginning of names that no other name has; it is taken from now on."""
        place, attempt = f"{wanted}/", 1
        while any(name.startswith(place) for name in self._taken):
            attempt += 1
            place = f"{wanted}#{attempt}/"
        self._taken.add(place)
        return place


def placed(node: NodeProto, place: str, names: Mapping[str, str], given: Mapping[str, AttributeProto]) -> None:
    """Give the node of a function the names and attributes of a call, in its bodies too."""

    def named(name: str) -> str:
        return names.get(name, f"{place}{name}" if name else "")

    node.input[:] = [named(name) for name in node.input]
    node.output[:] = [named(name) for name in node.output]
    attributes = [filled_in(attribute, given) for attribute in node.attribute]
    del node.attribute[:]
    node.attribute.extend(attribute for attribute in attributes if attribute is not None)
    for body in bodies_of(node):
        for port in (*body.input, *body.output, *body.value_info):
            port.name = named(port.name)
        for tensor in body.initializer:
            tensor.name = named(tensor.name)
        for inner in body.node:
            placed(inner, place, names, given)


def filled_in(attribute: AttributeProto, given: Mapping[str, AttributeProto]) -> AttributeProto | None:
    """The attribute, with the call's value where it refers to one; None where the call has none."""
    if not attribute.ref_attr_name:
        return attribute
    value = given.get(attribute.ref_attr_name)
    if value is None:
        return None
    copy = AttributeProto()
    copy.CopyFrom(value)
    copy.name = attribute.name
    return copy
