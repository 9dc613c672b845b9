"""
Names that are unique in the whole model, bodies and all.

Bodies side by side may use one name for two tensors. Then the later one is renamed, for as long as the model is worked
on; what is written out has the names of the file again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from onnx import GraphProto, ModelProto, NodeProto

from onnxprune.reading.graph import names_in


def with_unique_names(model: ModelProto) -> tuple[ModelProto, dict[str, str]]:
    """The model with every tensor's name its own, and for each name that changed the one in the file."""
    if not any(True for node in model.graph.node for _ in bodies_of(node)):
        return model, {}
    every = [name for name in names_in(model.graph) if name]
    made = ModelProto()
    made.CopyFrom(model)
    taken, renamed = set(every), dict[str, str]()
    seen = set(own_names(made.graph))
    for node in made.graph.node:
        rename_in_bodies(node, {}, seen, taken, renamed)
    return (made, renamed) if renamed else (model, {})


def rename_in_bodies(
    node: NodeProto, outer: Mapping[str, str], seen: set[str], taken: set[str], renamed: dict[str, str]
) -> None:
    """Rename what the node's bodies define where that name was seen before; `outer` are new names around them."""
    for body in bodies_of(node):
        names = dict(outer)
        for name in own_names(body):
            names[name] = unseen(name, taken) if name in seen else name
            renamed |= {names[name]: name} if names[name] != name else {}
            seen.add(names[name])
        put_names(body, names)
        for inner in body.node:
            rename_in_bodies(inner, names, seen, taken, renamed)


def unseen(name: str, taken: set[str]) -> str:
    """A name like this one that is not taken; it is from now on."""
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    taken.add(f"{name}#{number}")
    return f"{name}#{number}"


def restore_names(node: NodeProto, renamed: Mapping[str, str]) -> None:
    """Give everything in the node's bodies the name that it has in the file."""
    for body in bodies_of(node):
        put_names(body, renamed)
        for inner in body.node:
            restore_names(inner, renamed)


def put_names(body: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors in one body, but not in those inside it."""
    for port in (*body.input, *body.output, *body.value_info):
        port.name = names.get(port.name, port.name)
    for tensor in body.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in body.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def own_names(graph: GraphProto) -> Iterator[str]:
    """Names that the graph gives to tensors, but for those in its bodies."""
    yield from (port.name for port in graph.input)
    yield from (tensor.name for tensor in graph.initializer if all(tensor.name != port.name for port in graph.input))
    yield from (name for node in graph.node for name in node.output if name)


def bodies_of(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs among the node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
