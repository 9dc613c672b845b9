"""What a rule sees of one node: its attributes, and its tensors with a Dim for every axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from onnxprune.reading.graph import Node
from onnxprune.rules.axes import Dim


class NotUnderstood(Exception):
    """A rule meets a form it has nothing to say about; the node's axes freeze with this text as the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """
    One tensor at one node: `axes` are its dimension variables, `value` its numbers where they are known.

    `own`: a constant that is this node's as far as pruning goes; should another node need other numbers, each has its.
    """

    name: str
    axes: tuple[Dim, ...]
    value: np.ndarray | None = None
    own: bool = False

    @overload
    def __getitem__(self, axis: int) -> Dim: ...
    @overload
    def __getitem__(self, axis: slice) -> tuple[Dim, ...]: ...
    def __getitem__(self, axis: int | slice) -> Dim | tuple[Dim, ...]:
        return self.axes[axis]

    @property
    def rank(self) -> int:
        return len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)


@dataclass(frozen=True, slots=True)
class BodyOf:
    """A body of a node: the typed tensors that it takes and gives; None where the shape is not known."""

    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """A node with its typed tensors; an optional input that is absent is None."""

    node: Node
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    opset: int
    bodies: tuple[BodyOf, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Every input that is present, in order."""
        return tuple(tensor for tensor in self.inputs if tensor is not None)

    @property
    def results(self) -> tuple[Tensor, ...]:
        """Every output that is used, in order."""
        return tuple(tensor for tensor in self.outputs if tensor is not None)

    @property
    def of_bodies(self) -> tuple[Tensor, ...]:
        """Every tensor that its bodies take or give."""
        return tuple(t for body in self.bodies for t in (*body.inputs, *body.outputs) if t is not None)

    def optional(self, index: int) -> Tensor | None:
        """Input number `index`, or None."""
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int) -> Tensor:
        """Input number `index`, which must be there."""
        tensor = self.optional(index)
        if tensor is None:
            raise NotUnderstood(f"input {index} is missing")
        return tensor

    def output(self, index: int = 0) -> Tensor:
        """Output number `index`, which must be used."""
        tensor = self.optional_output(index)
        if tensor is None:
            raise NotUnderstood(f"output {index} is not used")
        return tensor

    def optional_output(self, index: int) -> Tensor | None:
        """Output number `index`, or None where it is not used."""
        return self.outputs[index] if index < len(self.outputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's Python value, or `default`."""
        return self.node.attributes.get(name, default)

    def numbers(self, name: str, index: int) -> list[int] | None:
        """The integers of attribute `name` (older opsets) or of input `index` (newer ones); None when absent."""
        if name in self.node.attributes:
            return [int(number) for number in self.node.attributes[name]]
        tensor = self.optional(index)
        if tensor is None:
            return None
        if tensor.value is None:
            raise NotUnderstood(f"input {index} ({tensor.name!r}) is computed from data")
        return [int(number) for number in tensor.value.reshape(-1)]

    def place(self, name: str, index: int) -> str | int:
        """Where `numbers(name, index)` stand: the attribute's name, or the input's index."""
        return name if name in self.node.attributes else index

    def axis(self, of: Tensor, default: int = 0, name: str = "axis") -> int:
        """The attribute `name` as a non-negative axis number of `of`."""
        return int(self.attribute(name, default)) % max(of.rank, 1)
