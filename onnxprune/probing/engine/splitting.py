"""The two parts of a cut as models: what runs once, and what runs for every probe and ends in the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.coupling.types import Use
from onnxprune.probing.engine.cutting import Cut, Sink
from onnxprune.probing.gates import Gate
from onnxprune.probing.loss_graph import loss_nodes
from onnxprune.probing.losses import Loss
from onnxprune.reading.graph import Constant, Graph, read_by

SINK_DATA, SINK_WEIGHT = "onnxprune.data", "onnxprune.weight"
"""The inputs of a sink alone."""

QUANTIZED_TYPES = frozenset({int(TensorProto.INT8), int(TensorProto.UINT8)})
"""Element types in which nothing can be multiplied."""

Store = Callable[[Constant], TensorProto]
"""Says how a constant is written into a part: whole, or as a reference to where its numbers lie."""


def part_before(graph: Graph, cut: Cut, store: Store) -> ModelProto:
    """The nodes that make what comes across the cut, which is the part's outputs, except for the model's inputs."""
    nodes = [graph.protos[position] for position in cut.before]
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
    nodes = [*Gating(graph, cut).nodes(cut.behind), *ending.nodes]
    part = part_of(graph, nodes, inputs | dict(ending.inputs), store, passed=ending.outputs)
    part.graph.initializer.extend(ending.constants)
    part.graph.output.extend(ValueInfoProto(name=name) for name in ending.outputs)
    return part


def part_of_sink(graph: Graph, sink: Sink, store: Store) -> ModelProto:
    """The sink alone, which takes some positions of its tensor and of its constant."""
    node = NodeProto()
    node.CopyFrom(graph.protos[sink.position])
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


class Gating:
    """
    The nodes behind a cut, sinks reading what the gates leave.

    A gate multiplies in front of the first of its sinks, in the graph that makes its tensor: the main one or a body.
    """

    def __init__(self, graph: Graph, cut: Cut) -> None:
        self._graph = graph
        self._read: dict[Use, str] = {}
        for number, gate in enumerate(cut.fed):
            self._read |= dict.fromkeys(gate.uses, closed_name(number))
        self._waiting = dict(enumerate(cut.inside))
        sinks = {position for gate in (*cut.fed, *cut.inside) for position, _ in gate.uses}
        self._holders = {holder for position in sinks for holder in graph.holders(position)}

    def nodes(self, positions: Iterable[int]) -> Iterator[NodeProto]:
        """The nodes at these positions of one graph, in order, with the gates between them."""
        for position in positions:
            if position not in self._holders:
                yield self._graph.protos[position]
                continue
            for number, gate in list(self._waiting.items()):
                if self._belongs(gate, position):
                    yield from self._multiplied(gate_name(number), self._waiting.pop(number))
            yield self._gated(position)

    def _belongs(self, gate: Gate, position: int) -> bool:
        """Is one of the gate's sinks this node, or inside it, and its tensor one of the node's own graph?"""
        here = self._graph.scopes.get(gate.tensor) == self._graph.nodes[position].inside
        return here and any(position in self._graph.holders(sink) for sink, _ in gate.uses)

    def _gated(self, position: int) -> NodeProto:
        """The node, reading what the gates leave; its bodies too."""
        node = NodeProto()
        node.CopyFrom(self._graph.protos[position])
        node.input[:] = [self._read.get((position, index), name) for index, name in enumerate(node.input)]
        for body in self._graph.bodies.get(position, ()):
            inner = next(attribute.g for attribute in node.attribute if attribute.name == body.attribute)
            gated = list(self.nodes(body.nodes))
            del inner.node[:]
            inner.node.extend(gated)
        return node

    def _multiplied(self, name: str, gate: Gate) -> Iterator[NodeProto]:
        """Nodes that multiply the gate into what its sinks read so far; from then on they read the product."""
        factor, element_type = name, element_type_of(gate.tensor, self._graph)
        quantized = element_type in QUANTIZED_TYPES
        if quantized:
            yield from unit_coding(name, gate, element_type)
        elif element_type != TensorProto.FLOAT:
            factor = f"{name}.cast"
            yield helper.make_node("Cast", [name], [factor], to=element_type)
        for number, source in enumerate(dict.fromkeys(self._read.get(use, gate.tensor) for use in gate.uses)):
            product = f"{name}.product.{number}"
            if quantized:
                yield from decoded_and_multiplied(source, name, product, gate)
            else:
                yield helper.make_node("Mul", [source, factor], [product])
            self._read |= {use: product for use in gate.uses if self._read.get(use, gate.tensor) == source}


def unit_coding(name: str, gate: Gate, element_type: int) -> Iterator[NodeProto]:
    """The scale 1, and as zero points the numbers that stand for zero, of a gate on quantised numbers."""
    zeros = np.array(gate.zeros or (0.0,))
    points = zeros if len(zeros) > 1 else zeros[0]
    dtype = helper.tensor_dtype_to_np_dtype(element_type)
    for role, numbers in (("scale", np.ones_like(points, np.float32)), ("zeros", np.asarray(points).astype(dtype))):
        yield helper.make_node("Constant", [], [f"{name}.{role}"], value=numpy_helper.from_array(np.asarray(numbers)))


def decoded_and_multiplied(source: str, name: str, product: str, gate: Gate) -> Iterator[NodeProto]:
    """Quantised numbers times the gate, on the way to what stands for zero."""
    coding, decoded, multiplied = [f"{name}.scale", f"{name}.zeros"], f"{product}.decoded", f"{product}.floats"
    axis: dict[str, Any] = {"axis": gate.axis} if len(gate.zeros or ()) > 1 else {}
    yield helper.make_node("DequantizeLinear", [source, *coding], [decoded], **axis)
    yield helper.make_node("Mul", [decoded, name], [multiplied])
    yield helper.make_node("QuantizeLinear", [multiplied, *coding], [product], **axis)


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
