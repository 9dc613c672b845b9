"""
Local functions, put together again: where all uses of a function came out alike, it is a function once more.

What is compared are the nodes in place of each call, in the function's own names. Nodes that pruning did not touch are
those of the function, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from onnx import FunctionProto, ModelProto, NodeProto

from onnxprune.reading.functions import Call, Inlining, Key, called, key_of
from onnxprune.reading.names import bodies_of


@dataclass(frozen=True)
class Outlined:
    """A model, the names of the functions that it still has, and of those whose nodes stand in place of their calls."""

    model: ModelProto
    kept: tuple[str, ...]
    inlined: tuple[str, ...]


def outlined(model: ModelProto, inlining: Inlining) -> Outlined:
    """The model with its functions again, those whose uses agree."""
    outliner = Outliner(model, inlining)
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.functions[:]
    made.graph.node.extend(outliner.nodes())
    functions = {key_of(one): one for one in (*model.functions, *outliner.functions())}
    left = called(made.graph, functions)
    source = [key_of(function) for function in inlining.source.functions]
    made.functions.extend(functions[key] for key in source if key in left)
    kept = tuple(key[1] for key in source if key in left)
    if set(source) == left:
        del made.opset_import[:]
        made.opset_import.extend(inlining.source.opset_import)
    return Outlined(made, kept, tuple(key[1] for key in source if key not in left))


@dataclass
class Outliner:
    """Finds the nodes in place of each call, and what function they would make."""

    model: ModelProto
    inlining: Inlining
    found: dict[Key, list[NodeProto] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._every = [one for call in self.inlining.calls for one in with_inner(call)]
        for call in reversed(self._every):  # the innermost first
            key = key_of(call.function)
            if key not in self.found:
                alike = [self._body(one) for one in self._every if key_of(one.function) == key]
                same = all(spelled(body) == spelled(alike[0]) for body in alike)
                self.found[key] = alike[0] if same else None

    def nodes(self) -> Iterator[NodeProto]:
        """The main graph's nodes, with a call in place of the nodes of every function that is one again."""
        calls = {call.place: call for call in self.inlining.calls}
        for place, run in groupby(self.model.graph.node, key=lambda node: place_of(node, calls)):
            if place is not None and self.found[key_of(calls[place].function)] is not None:
                yield calls[place].node
            else:
                yield from run

    def functions(self) -> Iterator[FunctionProto]:
        """The functions, with the nodes that they have now."""
        for function in self.inlining.source.functions:
            body = self.found.get(key_of(function))
            if body is None:
                continue
            copy = FunctionProto()
            copy.CopyFrom(function)
            if spelled(body) != spelled(list(function.node)):
                del copy.node[:], copy.value_info[:]
                copy.node.extend(body)
            yield copy

    def _body(self, call: Call) -> list[NodeProto] | None:
        """The nodes in place of a call as those of a function; None where they are no function's."""
        if any(self.found.get(key_of(inner.function)) is None for inner in call.inner.values()):
            return None
        places = {inner.place: number for number, inner in call.inner.items()}
        runs = [list(run) for _, run in groupby(self.model.graph.node, key=lambda n: n.name.startswith(call.place))]
        runs = [run for run in runs if run[0].name.startswith(call.place)]
        if len(runs) != 1:
            return None
        body: list[NodeProto] = []
        for place, nodes in groupby(runs[0], key=lambda node: place_of(node, places)):
            if place is not None:
                body.append(call.function.node[places[place]])
                continue
            for node in nodes:
                own = in_own_names(node, call)
                if own is None:
                    return None
                body.append(own)
        return body


def with_inner(call: Call) -> Iterator[Call]:
    """The call, and those in it."""
    yield call
    for inner in call.inner.values():
        yield from with_inner(inner)


def place_of(node: NodeProto, places: object) -> str | None:
    """In place of which of these calls the node stands, if of any."""
    assert isinstance(places, dict)
    return next((place for place in places if node.name.startswith(place)), None)


def spelled(nodes: list[NodeProto] | None) -> list[bytes] | None:
    """What tells nodes from others."""
    return None if nodes is None else [node.SerializeToString(deterministic=True) for node in nodes]


def in_own_names(node: NodeProto, call: Call) -> NodeProto | None:
    """A node in place of a call as the function has it, or would have it; None if it reads what a function cannot."""
    number, before = next(((n, one) for n, one in enumerate(call.nodes) if one.name == node.name), (None, None))
    if before is not None and number is not None and before == node:
        return call.function.node[number]
    if any(True for _ in bodies_of(node)):
        return None
    made = NodeProto()
    made.CopyFrom(node)
    made.name = node.name.removeprefix(call.place)
    formal = {actual: name for name, actual in zip(call.function.input, call.node.input, strict=False)}
    formal |= {actual: name for name, actual in zip(call.function.output, call.node.output, strict=False)}
    for names in (made.input, made.output):
        for index, name in enumerate(names):
            if name.startswith(call.place):
                names[index] = name.removeprefix(call.place)
            elif name and (name not in formal or list(call.node.input).count(name) > 1):
                return None
            elif name:
                names[index] = formal[name]
    if number is not None and before is not None:
        references = {a.name: a for a in call.function.node[number].attribute if a.ref_attr_name}
        values = {attribute.name: attribute for attribute in before.attribute}
        attributes = [references[a.name] if a.name in references and a == values[a.name] else a for a in node.attribute]
        del made.attribute[:]
        made.attribute.extend(attributes)
        made.name = call.function.node[number].name
    return made
