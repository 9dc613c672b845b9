"""Models that bend the rules of ONNX, put right: nodes in order, names of their own, records that are true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, shape_inference

from onnxprune.errors import ModelError
from onnxprune.reading.graph import read_by
from onnxprune.reading.names import bodies_of
from onnxprune.reading.observing import Observation, without_weights

UNSORTED = "Nodes stood before others that make what they read: they were sorted."
TWICE = "Nodes had the name of another one, which ONNX Runtime refuses: they were renamed."
UNTRUE = "Recorded shapes or types of tensors were not true, and were inferred anew: {names}."


def straightened(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """The model with its nodes in order and no name of a node twice, and what was done; itself where nothing was."""
    graphs = list(graphs_in(model.graph))
    unsorted, twice = not all(map(is_sorted, graphs)), any(map(has_names_twice, graphs))
    if not unsorted and not twice:
        return model, ()
    made = ModelProto()
    made.CopyFrom(model)
    for graph in graphs_in(made.graph):
        if not is_sorted(graph):
            nodes = [copy_of(node) for node in in_order(graph.node)]
            del graph.node[:]
            graph.node.extend(nodes)
        if has_names_twice(graph):
            name_apart(graph)
    return made, (*((UNSORTED,) if unsorted else ()), *((TWICE,) if twice else ()))


def graphs_in(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph behind the bodies in it."""
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_in(body)
    yield graph


def is_sorted(graph: GraphProto) -> bool:
    """Does every node stand behind those that make what it reads?"""
    later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if not later.isdisjoint(read_by(node)):
            return False
        later.difference_update(node.output)
    return True


def in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """
    The nodes, each behind those that make what it reads, else as they stand.

    Raises:
        ModelError: they go in a circle.
    """
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    missing = [{makers[name] for name in read_by(node) if name in makers} for node in nodes]
    placed: dict[int, None] = {}
    while len(placed) < len(nodes):
        ready = next((n for n in range(len(nodes)) if n not in placed and missing[n] <= placed.keys()), None)
        if ready is None:
            left = next(node for number, node in enumerate(nodes) if number not in placed)
            raise ModelError(
                f"Expected a graph without circles, found that node {left.name or left.op_type!r} needs what it helps "
                "to make. Export the model again."
            )
        placed[ready] = None
    return [nodes[number] for number in placed]


def copy_of(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def has_names_twice(graph: GraphProto) -> bool:
    """Do two nodes have one name?"""
    names = [node.name for node in graph.node if node.name]
    return len(set(names)) < len(names)


def name_apart(graph: GraphProto) -> None:
    """Give each node whose name was there before a number behind it."""
    taken, seen = {node.name for node in graph.node}, set[str]()
    for node in graph.node:
        number = 2
        if node.name and node.name in seen:
            while f"{node.name}#{number}" in taken:
                number += 1
            node.name = f"{node.name}#{number}"
        seen.add(node.name)
        taken.add(node.name)


def with_true_records(model: ModelProto, seen: Observation) -> tuple[ModelProto, tuple[str, ...]]:
    """The model without recorded shapes and types that were seen to be others, inferred anew where that is possible."""
    untrue = {info.name for info in model.graph.value_info if not is_true(info, seen)}
    if not untrue:
        return model, ()
    bare, _ = without_weights(model)
    try:
        inferred = {info.name: info for info in shape_inference.infer_shapes(bare).graph.value_info}
    except Exception:  # shape inference raises several kinds; then nothing is recorded
        inferred = {}
    infos = [inferred.get(info.name) if info.name in untrue else info for info in model.graph.value_info]
    made = ModelProto()
    made.CopyFrom(model)
    del made.graph.value_info[:]
    made.graph.value_info.extend(info for info in infos if info is not None and is_true(info, seen))
    return made, (UNTRUE.format(names=", ".join(sorted(map(repr, untrue)))),)


def is_true(info: ValueInfoProto, seen: Observation) -> bool:
    """Does the record agree with what was seen of the tensor?"""
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type") or info.name not in seen.shapes:
        return True
    if kind.elem_type not in (0, seen.element_types.get(info.name, kind.elem_type)):
        return False
    if not kind.HasField("shape"):
        return True
    shape = seen.shapes[info.name]
    sizes = zip(kind.shape.dim, shape, strict=False)
    return len(kind.shape.dim) == len(shape) and all(
        not dim.HasField("dim_value") or dim.dim_value == size for dim, size in sizes
    )
