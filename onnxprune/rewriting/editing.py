"""A copy of the model that can be edited: what is not touched stays byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.reading.graph import Constant, Graph, constant_tensor, fresh_name
from onnxprune.reading.names import restore_names
from onnxprune.reading.numbers import Made, referring, source_of, without_numbers

INITIALIZERS_ARE_NO_INPUTS = 4
"""The IR version from which an initializer need not be listed among the graph's inputs."""

CONSTANT_VALUES = frozenset({"value_float", "value_floats", "value_int", "value_ints", "sparse_value"})

SizesOf = Callable[[str], tuple[int, ...] | None]


class Draft:
    """
    The new model in the making.

    Nodes are known by their position in the original; new nodes are placed behind one of those, and new constants are
    initializers (Constant nodes where the IR version wants every initializer to be an input).
    """

    def __init__(self, graph: Graph) -> None:
        self._taken = {*graph.names, *(node.name for node in graph.nodes)}
        self._nodes: list[NodeProto] = []
        for proto in graph.protos:
            copy = NodeProto()
            copy.CopyFrom(proto)
            self._nodes.append(copy)
        self._behind: dict[int, list[NodeProto]] = {}
        self._changed: dict[str, TensorProto] = {}
        self._added: dict[str, TensorProto] = {}
        self._graph = graph

    def fresh(self, wanted: str) -> str:
        """A tensor name that is not taken."""
        return fresh_name(wanted, self._taken)

    def read_instead(self, position: int, index: int, name: str) -> None:
        """Let input `index` of a node be another tensor; an absent optional input is filled in."""
        inputs = self._nodes[position].input
        while len(inputs) <= index:
            inputs.append("")
        inputs[index] = name

    def set_attribute(self, position: int, name: str, value: object, *, drop: frozenset[str] = frozenset()) -> None:
        """Replace an attribute's value, or add it, and drop others."""
        put_attribute(self._nodes[position], name, value, drop=drop)

    def drop_attribute(self, position: int, name: str) -> None:
        """Take an attribute away."""
        node = self._nodes[position]
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend(kept)

    def become(self, position: int, op_type: str, inputs: Sequence[str], **attributes: object) -> None:
        """Make another operator of the standard of a node; its name and its outputs stay."""
        node = self._nodes[position]
        node.op_type, node.domain = op_type, ""
        node.input[:] = inputs
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())

    def change(self, name: str, array: np.ndarray) -> None:
        """Give the constant other numbers under its own name."""
        self._changed[name] = like(self._graph.constants[name].tensor, array, name)

    def derive(self, name: str, source: Constant, shape: tuple[int, ...], make: Callable[[], np.ndarray]) -> None:
        """A constant made of `source`, or that itself changed; made when asked for if its numbers are elsewhere."""
        place = self._changed if name in self._graph.constants else self._added
        place[name] = made_of(source.tensor, shape, make, name)

    def add(self, name: str, array: np.ndarray, source: TensorProto | None = None) -> None:
        """A new constant, of the kind of `source` if that is given."""
        self._added[name] = numpy_helper.from_array(array, name) if source is None else like(source, array, name)

    def copy_behind(self, position: int, inputs: Mapping[int, str], output: int, name: str) -> None:
        """A second node like the one at `position`, reading `inputs`, whose output number `output` is `name`."""
        copy = NodeProto()
        copy.CopyFrom(self._graph.protos[position])
        for index, source in inputs.items():
            copy.input[index] = source
        for number in range(len(copy.output)):
            copy.output[number] = name if number == output else ""
        copy.name = f"{copy.name}.{name}" if copy.name else ""
        self._behind.setdefault(position, []).append(copy)

    def new_behind(self, position: int, op_type: str, inputs: Sequence[str], name: str) -> None:
        """A new node of one output behind the node at `position`."""
        node = helper.make_node(op_type, list(inputs), [name], name=name)
        self._behind.setdefault(position, []).append(node)

    def finish(self, sizes_of: SizesOf) -> ModelProto:
        """
        The new model: nodes and constants that only the edits left without a reader are gone, recorded shapes are true.

        `sizes_of` gives the new size of each axis of a tensor whose size changes, and None for the others. The draft
        hands its constants over and is used up.
        """
        living, unread = self._living()
        finishing = Finishing(self._graph, self._nodes, self._behind, self._changed, sizes_of, living, unread)
        model = ModelProto()
        copy_fields(self._graph.model, model, skip={"graph"})
        finishing.fill(model.graph, self._graph.model.graph, range(len(self._graph.main)))
        for node in model.graph.node if self._graph.renamed else ():
            restore_names(node, self._graph.renamed)
        as_nodes = self._graph.model.ir_version < INITIALIZERS_ARE_NO_INPUTS
        for tensor in self._added.values():
            if as_nodes:
                model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
            else:
                model.graph.initializer.append(tensor)
        return model

    def _living(self) -> tuple[set[int], set[str]]:
        """The positions of the nodes that are read, and the names that the original read and the draft does not."""
        graph = self._graph
        outputs = graph.given_out
        originally = set(graph.readers) | outputs
        new = [node for nodes in self._behind.values() for node in nodes]
        living = set(range(len(self._nodes)))
        while True:
            nodes = [*(self._nodes[position] for position in living), *new]
            unread = originally - {name for node in nodes for name in node.input} - outputs
            left = {number for number in living if self._is_read(self._nodes[number], unread)}
            if len(left) == len(living):
                return living, unread
            living = left

    @staticmethod
    def _is_read(node: NodeProto, unread: set[str]) -> bool:
        return not unread.intersection(node.output) or any(name and name not in unread for name in node.output)


@dataclass(frozen=True)
class Finishing:
    """What graphs are made of in the end: the main one, and those inside nodes."""

    graph: Graph
    nodes: Sequence[NodeProto]
    behind: Mapping[int, Sequence[NodeProto]]
    changed: dict[str, TensorProto]
    sizes_of: SizesOf
    living: set[int]
    unread: set[str]

    def fill(self, new: GraphProto, old: GraphProto, positions: Iterable[int]) -> None:
        """The graph of the nodes at these positions."""
        copy_fields(old, new, skip={"node", "initializer", "input", "output", "value_info"})
        for position in positions:
            new.node.extend(self._finished(position) if position in self.living else ())
            new.node.extend(self.behind.get(position, ()))
        for tensor in old.initializer:
            if tensor.name not in self.unread:
                new.initializer.append(self.changed.pop(tensor.name, tensor))
        for infos, target in ((old.input, new.input), (old.output, new.output), (old.value_info, new.value_info)):
            target.extend(resized(info, self.sizes_of) for info in infos if info.name not in self.unread)

    def _finished(self, position: int) -> Iterator[NodeProto]:
        """The node with what it holds: a constant that changed, bodies of finished nodes."""
        node, bodies = self.nodes[position], self.graph.bodies.get(position, ())
        held = constant_tensor(node)
        if held is not None and node.output[0] in self.changed:
            put_attribute(node, "value", self.changed[node.output[0]], drop=CONSTANT_VALUES)
        for body in bodies:
            attribute = next(one for one in node.attribute if one.name == body.attribute)
            made = GraphProto()
            self.fill(made, attribute.g, body.nodes)
            attribute.g.CopyFrom(made)
        yield node


def put_attribute(node: NodeProto, name: str, value: object, *, drop: frozenset[str] = frozenset()) -> None:
    """Give the node's attribute this value, and drop others."""
    kept = [attribute for attribute in node.attribute if attribute.name not in drop | {name}]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def made_of(source: TensorProto, shape: Sequence[int], make: Callable[[], np.ndarray], name: str) -> TensorProto:
    """A tensor of what `make` gives; made when asked for, if the numbers of `source` are elsewhere."""
    origin = source_of(source)
    if origin is None:
        return like(source, make(), name)
    tensor = without_numbers(source)
    tensor.name = name
    del tensor.dims[:]
    tensor.dims.extend(shape)
    return referring(tensor, Made(origin.place, make))


def like(source: TensorProto, array: np.ndarray, name: str) -> TensorProto:
    """The numbers as a tensor of that name, with the doc string and metadata of `source`."""
    tensor = numpy_helper.from_array(np.asarray(array, order="C"), name)
    tensor.data_type = source.data_type
    copy_fields(source, tensor, skip=set(TensorProto.DESCRIPTOR.fields_by_name) - {"doc_string", "metadata_props"})
    return tensor


def copy_fields(source: Message, target: Message, *, skip: set[str]) -> None:
    """Copy every field that is set, except those named."""
    for field, value in source.ListFields():
        if field.name in skip:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def resized(info: ValueInfoProto, sizes_of: SizesOf) -> ValueInfoProto:
    """The recorded shape with the new sizes where numbers are recorded."""
    sizes = sizes_of(info.name)
    if sizes is None:
        return info
    copy = ValueInfoProto()
    copy.CopyFrom(info)
    for dim, size in zip(copy.type.tensor_type.shape.dim, sizes, strict=False):
        if dim.HasField("dim_value"):
            dim.dim_value = size
    return copy
