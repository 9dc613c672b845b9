"""The model as read: immutable values that name nodes, tensors and constants; weights stay where they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.reading.numbers import blocks, numbers

if TYPE_CHECKING:
    from onnxprune.reading.functions import Inlining

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One node; `name` is unique in the graph, made up from an output where the file has none."""

    name: str
    position: int
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    captured: tuple[str, ...]
    """Outer tensors that the bodies of control flow read by name."""

    inside: int | None = None
    """The position of the node in whose body it stands; None in the main graph."""

    @property
    def label(self) -> str:
        """The operator as a user writes it, with its domain where that is not the standard's."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor it reads, those that its bodies read by name too."""
        return (*(name for name in self.inputs if name), *self.captured)

    @property
    def bodies(self) -> tuple[GraphProto, ...]:
        """The graphs among its attributes."""
        return tuple(value for value in self.attributes.values() if isinstance(value, GraphProto))

    @property
    def has_body(self) -> bool:
        return bool(self.bodies)


@dataclass(frozen=True, slots=True)
class Body:
    """A graph among a node's attributes: what it takes and gives, by name, and the positions of its own nodes."""

    attribute: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """An initializer or the value of a Constant node; its numbers are read when asked for."""

    name: str
    shape: Shape
    tensor: TensorProto

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_float(self) -> bool:
        return self.tensor.data_type in FLOAT_TYPES

    @property
    def is_weight(self) -> bool:
        """Does it hold learned numbers, plain or quantised, rather than indices, sizes or flags?"""
        return self.tensor.data_type not in INDEX_TYPES

    def array(self) -> np.ndarray:
        """The numbers, as numpy array of `shape`."""
        return numbers(self.tensor)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The numbers in blocks along the first axis, each with its first position; small constants in one."""
        return blocks(self.tensor)


@dataclass(frozen=True, slots=True)
class Port:
    """A graph input or output: sizes are ints, names of dynamic dimensions, or None where nothing is said."""

    name: str
    element_type: int
    shape: tuple[int | str | None, ...] | None

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(self.element_type))

    @property
    def is_dynamic(self) -> bool:
        return self.shape is None or any(not isinstance(size, int) for size in self.shape)


@dataclass(frozen=True)
class Graph:
    """
    A model with what is known about it before any analysis.

    `shapes` and `values` were observed at one setting of the dynamic dimensions (`input_shapes`): the concrete shape of
    every tensor, and the numbers of small integer tensors. `element_types` are those of inputs and computed tensors.
    """

    model: ModelProto
    digest: Callable[[], str]
    path: Path | None
    file_bytes: int
    notes: tuple[str, ...]
    """What of the file had to be put right before anything else."""

    nodes: tuple[Node, ...]
    """Those of the main graph in its order, then those of bodies; each stands at its `position`."""

    protos: tuple[NodeProto, ...]
    """The nodes as the file has them, in the same order."""

    bodies: Mapping[int, tuple[Body, ...]]
    """The bodies of each node that has some, by its position."""

    renamed: Mapping[str, str]
    """For names in bodies that another body has too: what the file calls these tensors."""

    inlining: Inlining | None
    """The calls of local functions that gave way to the functions' nodes, if the file has some."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, Constant]
    input_shapes: Mapping[str, Shape]
    shapes: Mapping[str, Shape]
    values: Mapping[str, np.ndarray]
    element_types: Mapping[str, int]

    @cached_property
    def sha256(self) -> str:
        """Of the file and of all numbers beside it."""
        return self.digest()

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Version of each operator set, the standard's under ""."""
        return {standard(entry.domain): entry.version for entry in self.model.opset_import}

    @cached_property
    def main(self) -> tuple[Node, ...]:
        """The nodes of the main graph."""
        return tuple(node for node in self.nodes if node.inside is None)

    @cached_property
    def in_order(self) -> tuple[Node, ...]:
        """All nodes in an order in which they can be computed: those of bodies before the node they belong to."""
        return tuple(self._and_inner(range(len(self.main))))

    def _and_inner(self, positions: Iterable[int]) -> Iterator[Node]:
        for position in positions:
            for body in self.bodies.get(position, ()):
                yield from self._and_inner(body.nodes)
            yield self.nodes[position]

    def holders(self, position: int) -> tuple[int, ...]:
        """The position, and those of the nodes in whose bodies its node stands, the main graph's last."""
        inside = self.nodes[position].inside
        return (position,) if inside is None else (position, *self.holders(inside))

    def in_main(self, position: int) -> int:
        """The position of the main graph's node that is, or holds, the node at `position`."""
        return self.holders(position)[-1]

    @cached_property
    def scopes(self) -> dict[str, int]:
        """For each tensor that a body defines, the position of the node that the body belongs to."""
        found = {name: node.inside for node in self.nodes if node.inside is not None for name in node.outputs if name}
        for position, bodies in self.bodies.items():
            found |= {name: position for body in bodies for name in body.inputs}
            found |= {tensor.name: position for body in self.nodes[position].bodies for tensor in body.initializer}
        return found

    @cached_property
    def readers(self) -> dict[str, tuple[tuple[Node, int], ...]]:
        """For each tensor, the (node, input index) pairs that read it."""
        found: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for index, name in enumerate(node.inputs):
                if name:
                    found.setdefault(name, []).append((node, index))
        return {name: tuple(uses) for name, uses in found.items()}

    @cached_property
    def makers(self) -> dict[str, Node]:
        """For each computed tensor, the node that makes it."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def given_out(self) -> frozenset[str]:
        """Tensors that are outputs, of the model or of a body."""
        of_bodies = (name for bodies in self.bodies.values() for body in bodies for name in body.outputs)
        return frozenset((*(port.name for port in self.outputs), *of_bodies))

    @cached_property
    def captured(self) -> frozenset[str]:
        """Tensors that bodies of control flow read by name."""
        return frozenset(name for node in self.nodes for name in node.captured)

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name of a tensor, those inside bodies too."""
        inner = (name for node in self.nodes for body in node.bodies for name in names_in(body))
        return frozenset((*self.shapes, *self.readers, *self.makers, *inner, *self.renamed.values()))

    @cached_property
    def has_batch(self) -> bool:
        """Is the first axis of every input dynamic?"""
        return bool(self.inputs) and all(
            port.shape is not None and len(port.shape) > 0 and not isinstance(port.shape[0], int)
            for port in self.inputs
        )


FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
PRECISE_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
"""Float types in which a small term may be taken off a sum, or a layer fitted, without losing what matters."""
INDEX_TYPES = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING})
NUMPY_TYPES = frozenset(
    element
    for element in onnx.helper.get_all_tensor_dtypes()
    if element not in (TensorProto.UNDEFINED, TensorProto.STRING)
    and np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)).isbuiltin == 1
)
"""Element types that numpy knows by itself, so that ONNX Runtime hands them out and takes them back."""
SMALL_BITS = re.compile(r"(?:U?INT|FLOAT)([24])(?:E|$)")
"""Names of element types of which several numbers share a byte."""


def bytes_each(element: int) -> float:
    """Of one number in the file."""
    small = SMALL_BITS.match(TensorProto.DataType.Name(element))
    return int(small[1]) / 8 if small else np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)).itemsize


ELEMENT_BYTES: dict[int, float] = {
    element: bytes_each(element)
    for element in onnx.helper.get_all_tensor_dtypes()
    if element not in (TensorProto.UNDEFINED, TensorProto.STRING)
}

ELEMENT_TYPES = {f"tensor({name.lower()})": number for name, number in TensorProto.DataType.items()}
"""ONNX element types by the names that ONNX Runtime gives to tensors of them."""


def standard(domain: str) -> str:
    """The domain, with the two spellings of the ONNX standard's made one."""
    return "" if domain == "ai.onnx" else domain


def attribute_value(attribute: AttributeProto) -> Any:
    """The attribute's value; texts as str, tensors and graphs as their protos."""
    if attribute.type == AttributeProto.TENSOR:
        return attribute.t
    if attribute.type == AttributeProto.SPARSE_TENSOR:
        return attribute.sparse_tensor
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [text.decode("utf-8", "replace") for text in value]
    return value


def outer_names(body: GraphProto) -> set[str]:
    """Names that `body` (and the bodies in it) reads but does not define."""
    defined = {port.name for port in body.input} | {tensor.name for tensor in body.initializer}
    wanted = {port.name for port in body.output}
    for node in body.node:
        defined.update(node.output)
        wanted.update(name for name in node.input if name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                wanted |= outer_names(inner)
    return wanted - defined


def read_by(node: NodeProto) -> Iterator[str]:
    """Every tensor that the node reads, those that its bodies read by name too."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            yield from outer_names(body)


def names_in(body: GraphProto) -> Iterator[str]:
    """Every name that a body, or a body in it, gives to a tensor."""
    yield from (port.name for port in body.input)
    yield from (tensor.name for tensor in body.initializer)
    for node in body.node:
        yield from node.output
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from names_in(inner)


def fresh_name(wanted: str, taken: set[str]) -> str:
    """A name that no tensor has; it is taken from now on."""
    name, attempt = wanted, 1
    while name in taken:
        attempt += 1
        name = f"{wanted}.{attempt}"
    taken.add(name)
    return name


def constants_of(graph: GraphProto) -> dict[str, Constant]:
    """Every initializer and every value of a Constant node, those in bodies too, by the tensor's name."""
    return {constant.name: constant for constant in held_constants(graph)}


def held_constants(graph: GraphProto) -> Iterator[Constant]:
    """The same one by one: in bodies side by side, a name may stand for several."""
    for tensor in graph.initializer:
        yield Constant(tensor.name, tuple(tensor.dims), tensor)
    for node in graph.node:
        held = constant_tensor(node)
        if held is not None:
            yield Constant(node.output[0], tuple(held.dims), held)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from held_constants(attribute.g)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds, as a dense tensor; None for any other node."""
    if node.op_type != "Constant" or standard(node.domain) or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    if attribute.name == "value":
        return attribute.t
    if attribute.name in ("value_float", "value_floats"):
        return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.float32))
    if attribute.name in ("value_int", "value_ints"):
        return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.int64))
    return None


def ports_of(graph: GraphProto, *, outputs: bool = False) -> Iterator[Port]:
    """The graph's real inputs (those that are not initializers), or its outputs."""
    weights = {tensor.name for tensor in graph.initializer}
    for info in graph.output if outputs else graph.input:
        if not outputs and info.name in weights:
            continue
        kind = info.type.tensor_type
        shape = tuple(declared_size(size) for size in kind.shape.dim) if kind.HasField("shape") else None
        yield Port(info.name, kind.elem_type, shape)


def declared_size(size: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """What the file says about one axis: a number, a name, or None."""
    if size.HasField("dim_value"):
        return int(size.dim_value) if size.dim_value >= 0 else None
    return size.dim_param or None
