"""
A layer as a small model of its own, at any widths.

What widths do to its shapes, its attributes and its stored sizes is read off the dimension types and the facts of the
rules; the numbers of weights do not matter to time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.reading.graph import NUMPY_TYPES
from onnxprune.rewriting.sizes import stored_attributes
from onnxprune.rules.axes import Axis, width
from onnxprune.rules.operation import Op, Tensor
from onnxprune.timing.layers import Layer, Layers, Unbuildable, Widths

NUMBERS = np.random.default_rng(0).uniform(0.01, 0.02, 2**16)
"""What weights and inputs are filled with, over and over: small numbers above zero do nobody harm."""

FEW = 8
"""Numbers of a float constant up to which it may be what a node does, such as how much it enlarges, and no weight."""


@dataclass(frozen=True)
class Trial:
    """A layer at certain widths: `key` is the same for all that run the same."""

    nodes: tuple[NodeProto, ...]
    inputs: Mapping[str, tuple[tuple[int, ...], int]]
    weights: Mapping[str, tuple[tuple[int, ...], int]]
    constants: Mapping[str, np.ndarray]
    outputs: Mapping[str, int]
    opsets: tuple[tuple[str, int], ...]

    @cached_property
    def key(self) -> str:
        """64 hexadecimal digits."""
        digest = hashlib.sha256()
        for part in (self.inputs, self.weights, self.outputs, self.opsets):
            digest.update(repr(part).encode())
        for name, array in self.constants.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        for node in self.nodes:
            digest.update(node.SerializeToString(deterministic=True))
        return digest.hexdigest()

    def model(self, copies: int = 1) -> ModelProto:
        """The layer by itself; or so many times, side by side, node n of copy c with the number c · nodes + n."""
        names = [self._names(copy) for copy in range(copies)]
        graph = helper.make_graph(
            [renamed(node, own) for own in names for node in self.nodes],
            "layer",
            [
                helper.make_tensor_value_info(own[name], kind, shape)
                for own in names
                for name, (shape, kind) in self.inputs.items()
            ],
            [
                helper.make_tensor_value_info(own[name], kind, None)
                for own in names
                for name, kind in self.outputs.items()
            ],
            [
                *(filled(name, shape, kind) for name, (shape, kind) in self.weights.items()),
                *(numpy_helper.from_array(array, name) for name, array in self.constants.items()),
            ],
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def feeds(self, copies: int = 1) -> dict[str, np.ndarray]:
        """Something to run it on."""
        numbers = {name: numpy_helper.to_array(filled(name, *form)) for name, form in self.inputs.items()}
        return {self._names(copy)[name]: array for copy in range(copies) for name, array in numbers.items()}

    def _names(self, copy: int) -> dict[str, str]:
        """For the names of the layer those in a copy of it; weights and constants are the same for all."""
        nodes = {f"onnxprune.{n}.": f"onnxprune.{n + copy * len(self.nodes)}." for n in range(len(self.nodes))}
        made = [name for node in self.nodes for name in node.output if name]
        inside = {name: nodes[name[: name.rindex(".") + 1]] + name[name.rindex(".") + 1 :] for name in made}
        return {**nodes, **inside, **{name: f"{name}.{copy}" for name in self.inputs}}

    @property
    def bytes(self) -> int:
        """Of its weights, about."""
        return sum(4 * math.prod(shape) for shape, _ in self.weights.values())


def renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """The node and its tensors with other names, as far as these have one."""
    found = NodeProto()
    found.CopyFrom(node)
    found.name = names[node.name]
    for ports in (found.input, found.output):
        ports[:] = [names.get(name, name) for name in ports]
    return found


def filled(name: str, shape: tuple[int, ...], kind: int) -> TensorProto:
    """A tensor of this form: small numbers, or zeros where it counts."""
    dtype: Any = helper.tensor_dtype_to_np_dtype(kind)
    if kind == TensorProto.STRING:
        raise Unbuildable("it reads words")
    is_float = kind not in NUMPY_TYPES or np.dtype(dtype).kind == "f"
    numbers = np.resize(NUMBERS, shape).astype(dtype) if is_float else np.zeros(shape, dtype)
    return numpy_helper.from_array(numbers, name)


def trial_of(layers: Layers, layer: Layer, widths: Widths) -> Trial:
    """
    The layer at these widths.

    Raises:
        Unbuildable: it has bodies, works on more than tensors, or its shapes are not known.
    """
    return Building(layers, layer, {**layers.at_batch, **widths}).trial()


class Building:
    """One layer being put together at certain widths."""

    def __init__(self, layers: Layers, layer: Layer, widths: Widths) -> None:
        self.layers = layers
        self.layer = layer
        self.widths = widths
        self.graph = layers.couplings.graph
        self.typing = layers.couplings.typing
        self.inside: dict[str, str] = {}
        self.inputs: dict[str, tuple[tuple[int, ...], int]] = {}
        self.input_names: dict[str, str] = {}
        self.weights: dict[str, tuple[tuple[int, ...], int]] = {}
        self.constants: dict[str, np.ndarray] = {}

    def trial(self) -> Trial:
        """All of it."""
        nodes = tuple(self._node(number, position) for number, position in enumerate(self.layer.positions))
        wanted = {name: new for name, new in self.inside.items() if self._is_read_outside(name)}
        types = self.layers.seen.element_types
        outputs = {new: types[name] for name, new in wanted.items() if name in types}
        if not outputs:
            raise Unbuildable("nothing that it makes is read")
        opsets = tuple(sorted((entry.domain, entry.version) for entry in self.graph.model.opset_import))
        return Trial(nodes, self.inputs, self.weights, self.constants, outputs, opsets)

    def _is_read_outside(self, name: str) -> bool:
        readers = self.graph.readers.get(name, ())
        inside = set(self.layer.positions)
        outside = any(node.position not in inside for node, _ in readers)
        return outside or name in self.graph.given_out or name in self.graph.captured

    def _node(self, number: int, position: int) -> NodeProto:
        """The node with numbers for names, at these widths."""
        node, op = self.graph.nodes[position], self.typing.stated[position].op
        if node.has_body:
            raise Unbuildable(f"{node.label} has bodies")
        made = NodeProto(op_type=node.op_type, domain=node.domain, name=f"onnxprune.{number}.")
        made.attribute.extend(self.graph.protos[position].attribute)
        self._set_sizes(op, made)
        made.input.extend(self._input(op, number, index, name) for index, name in enumerate(node.inputs))
        for index, name in enumerate(node.outputs):
            if name:
                self.inside[name] = f"onnxprune.{number}.{index}"
            made.output.append(self.inside.get(name, "") if name else "")
        return made

    def _set_sizes(self, op: Op, made: NodeProto) -> None:
        """The attributes that hold widths, or follow from them."""
        stored = self.layers.stored.get(op.node.position, [])
        for name, value in stored_attributes(op, stored, self._width):
            set_attribute(made, name, value)
        absent = [fact for fact in stored if isinstance(fact.place, str) and fact.place not in op.node.attributes]
        widths = [self._width(fact.size) for fact in absent]
        if len(set(widths)) > 1:  # equal parts, while nothing is said
            set_attribute(made, str(absent[0].place), widths)
        for implied in self.layers.implied.get(op.node.position, []):
            set_attribute(made, implied.name, implied.value)

    def _width(self, axis: Axis) -> int:
        return width(self.typing.solver.resolve(axis), self.widths)

    def _input(self, op: Op, number: int, index: int, name: str) -> str:
        """What the node reads here, by its name in the layer."""
        if not name:
            return ""
        if name in self.inside:
            return self.inside[name]
        tensor = self.typing.at(op.node, index)
        if tensor is None:
            raise Unbuildable(f"{name!r} is not a tensor of known shape")
        constant = self.graph.constants.get(name)
        own = f"constant.{number}.{index}"
        if constant is None and name not in self.typing.knowable:
            return self._fed(tensor)
        is_weight = constant.is_weight and constant.size > FEW if constant else name not in self.layers.seen.values
        if is_weight:
            kind = constant.tensor.data_type if constant else self.layers.seen.element_types[name]
            self.weights[own] = self.layers.shape(tensor, self.widths), kind
        else:
            value = constant.array() if constant else self.layers.seen.values[name]
            self.constants[own] = self._known(op, index, tensor, value)
        return own

    def _known(self, op: Op, index: int, tensor: Tensor, value: np.ndarray) -> np.ndarray:
        """Numbers that are known, with the sizes among them at these widths."""
        shape = self.layers.shape(tensor, self.widths)
        found = np.array(value)
        if found.shape != shape:
            found = np.resize(found, shape) if found.dtype.kind == "f" else found[tuple(map(slice, shape))]
        flat = found.reshape(-1)
        for fact in self.layers.stored.get(op.node.position, []):
            if fact.place != index:
                continue
            at, before = fact.element or 0, width(self.typing.solver.resolve(fact.size), self.layers.at_batch)
            if at < flat.size and int(flat[at]) == fact.sign * before:
                flat[at] = fact.sign * self._width(fact.size)
        return found

    def _fed(self, tensor: Tensor) -> str:
        """A tensor that another layer makes."""
        name = self.input_names.setdefault(tensor.name, f"input.{len(self.input_names)}")
        kind = self.layers.seen.element_types.get(tensor.name)
        if kind is None:
            raise Unbuildable(f"the type of {tensor.name!r} is not known")
        self.inputs[name] = self.layers.shape(tensor, self.widths), kind
        return name


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Give the node this attribute in place of the one it has."""
    left = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend((*left, helper.make_attribute(name, value)))
