"""The two parts of a cut as models: what runs once, and what runs for every probe and ends in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.coupling.types import Use
from onnxprune.probing.engine.cutting import Cut, Sink
from onnxprune.probing.gates import Gate
from onnxprune.probing.loss_graph import loss_nodes
from onnxprune.probing.losses import Loss
from onnxprune.reading.graph import Constant, Graph, read_by

SINK_DATA, SINK_WEIGHT = "onnxprune.data", "onnxprune.weight"
"""The inputs of a sink alone."""

Store = Callable[[Constant], TensorProto]
"""Says how a constant is written into a part: whole, or as a reference to where its numbers lie."""


def part_before(graph: Graph, cut: Cut, store: Store) -> ModelProto:
    """The nodes that make what comes across the cut, which is the part's outputs, except for the model's inputs."""
    nodes = [graph.model.graph.node[position] for position in cut.before]
    part = part_of(graph, nodes, {name: graph.element_types[name] for name in graph.input_shapes}, store)
    part.graph.output.extend(ValueInfoProto(name=one.name) for one in cut.across if one.name in graph.makers)
    return part


def part_behind(graph: Graph, cut: Cut, loss: Loss, store: Store, free: Iterable[str] = ()) -> ModelProto:
    """
    The nodes that run for every probe, the gates, and the loss as the only output (a user's loss: the raw outputs).

    The constants in `free` are inputs, so that a probe may bring its own.
    """
    inputs = {one.name: graph.element_types[one.name] for one in cut.across}
    inputs |= {name: graph.constants[name].tensor.data_type for name in free}
    inputs |= {closed_name(number): graph.element_types[gate.tensor] for number, gate in enumerate(cut.fed)}
    inputs |= {gate_name(number): int(TensorProto.FLOAT) for number in range(len(cut.inside))}
    ending = loss_nodes(loss, graph.opsets[""])
    nodes = [*gated_nodes(graph, cut), *ending.nodes]
    part = part_of(graph, nodes, inputs | dict(ending.inputs), store, passed=ending.outputs)
    part.graph.initializer.extend(ending.constants)
    part.graph.output.extend(ValueInfoProto(name=name) for name in ending.outputs)
    return part


def part_of_sink(graph: Graph, sink: Sink, store: Store) -> ModelProto:
    """The sink alone, which takes some positions of its tensor and of its constant."""
    node = NodeProto()
    node.CopyFrom(graph.model.graph.node[sink.position])
    node.input[sink.data], node.input[sink.weight] = SINK_DATA, SINK_WEIGHT
    weight = graph.nodes[sink.position].inputs[sink.weight]
    types = {SINK_DATA: graph.element_types[sink.gate.tensor], SINK_WEIGHT: graph.constants[weight].tensor.data_type}
    part = part_of(graph, [node], types, store)
    part.graph.output.append(ValueInfoProto(name=sink.output))
    return part


def closed_name(number: int) -> str:
    """The input that takes what the gate of this number in `Cut.fed` leaves of its tensor."""
    return f"onnxprune.closed.{number}"


def gate_name(number: int) -> str:
    """The input that takes the numbers of this gate in `Cut.inside`."""
    return f"onnxprune.gate.{number}"


def gated_nodes(graph: Graph, cut: Cut) -> Iterator[NodeProto]:
    """The nodes behind the cut, in order, sinks reading what the gates leave."""
    read: dict[Use, str] = {}
    for number, gate in enumerate(cut.fed):
        read |= dict.fromkeys(gate.uses, closed_name(number))
    waiting = dict(enumerate(cut.inside))
    for position in cut.behind:
        for number in [number for number, gate in waiting.items() if any(use[0] == position for use in gate.uses)]:
            yield from multiplied(gate_name(number), waiting.pop(number), read, graph)
        node = graph.model.graph.node[position]
        changed = [index for index in range(len(node.input)) if (position, index) in read]
        if changed:
            original, node = node, NodeProto()
            node.CopyFrom(original)
            for index in changed:
                node.input[index] = read[position, index]
        yield node


def multiplied(name: str, gate: Gate, read: dict[Use, str], graph: Graph) -> Iterator[NodeProto]:
    """Nodes that multiply the gate into what its sinks read so far; from then on they read the product."""
    factor, element_type = name, element_type_of(gate.tensor, graph)
    if element_type != TensorProto.FLOAT:
        factor = f"{name}.cast"
        yield helper.make_node("Cast", [name], [factor], to=element_type)
    for number, source in enumerate(dict.fromkeys(read.get(use, gate.tensor) for use in gate.uses)):
        product = f"{name}.product.{number}"
        yield helper.make_node("Mul", [source, factor], [product])
        read |= {use: product for use in gate.uses if read.get(use, gate.tensor) == source}


def element_type_of(name: str, graph: Graph) -> int:
    constant = graph.constants.get(name)
    return constant.tensor.data_type if constant is not None else graph.element_types[name]


def part_of(
    graph: Graph, nodes: Iterable[NodeProto], inputs: dict[str, int], store: Store, *, passed: Iterable[str] = ()
) -> ModelProto:
    """A model of these nodes, with the constants and those of the inputs that they read or that are `passed` on."""
    whole = graph.model
    part = ModelProto(ir_version=max(whole.ir_version, 4), opset_import=whole.opset_import, functions=whole.functions)
    part.graph.name = whole.graph.name or "part"
    part.graph.sparse_initializer.extend(whole.graph.sparse_initializer)
    part.graph.node.extend(nodes)
    read = dict.fromkeys((*passed, *(name for node in part.graph.node for name in read_by(node))))
    for name in read:
        if name in inputs:
            part.graph.input.append(helper.make_tensor_value_info(name, inputs[name], None))
        elif name in graph.constants:
            part.graph.initializer.append(store(graph.constants[name]))
    return part
