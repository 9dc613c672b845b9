"""What a model costs, as polynomials in the widths of its Dims: exact without rewriting anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from onnxprune.coupling.types import Typing, facts_where
from onnxprune.reading.graph import ELEMENT_BYTES, Graph
from onnxprune.rules.axes import Axis, Dim, Product, Sum, leaves, product_of, sum_of, width
from onnxprune.rules.facts import Macs
from onnxprune.rules.operation import Tensor


@dataclass(frozen=True, slots=True)
class Term:
    """`factor` times the widths of `axes`; `owner` is the node or tensor it stands for."""

    owner: str
    factor: float
    axes: tuple[Axis, ...]

    def at(self, widths: Mapping[Dim, int]) -> float:
        return self.factor * math.prod(width(axis, widths) for axis in self.axes)


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A sum of terms."""

    terms: tuple[Term, ...]
    constant: float = 0.0

    def at(self, widths: Mapping[Dim, int]) -> float:
        """The cost when each Dim in `widths` has that width and every other its own size."""
        return self.constant + sum(term.at(widths) for term in self.terms)

    @property
    def smooth(self) -> Polynomial:
        """Itself: it has no steps."""
        return self

    def touching(self, dims: frozenset[Dim]) -> Polynomial:
        """Only the terms that depend on one of `dims`."""
        return Polynomial(tuple(t for t in self.terms if any(leaf in dims for axis in t.axes for leaf in leaves(axis))))


@dataclass(frozen=True, slots=True)
class Stair:
    """A cost that counts each of these Dims in whole steps of so many positions."""

    polynomial: Polynomial
    steps: Mapping[Dim, int]

    def at(self, widths: Mapping[Dim, int]) -> float:
        """The cost."""
        whole = {dim: in_steps(widths.get(dim, dim.size), step) for dim, step in self.steps.items()}
        return self.polynomial.at({**widths, **whole})

    def times(self, factor: float) -> Stair:
        """So many times the cost."""
        terms = (Term(term.owner, term.factor * factor, term.axes) for term in self.polynomial.terms)
        return Stair(Polynomial(tuple(terms), self.polynomial.constant * factor), self.steps)


@dataclass(frozen=True, slots=True)
class Staircase:
    """A sum of such costs, and of one that never changes."""

    parts: tuple[Stair, ...]
    constant: float = 0.0

    def at(self, widths: Mapping[Dim, int]) -> float:
        """The cost when each Dim in `widths` has that width and every other its own size."""
        return self.constant + sum(part.at(widths) for part in self.parts)

    @property
    def smooth(self) -> Polynomial:
        """The same without steps."""
        return Polynomial(tuple(term for part in self.parts for term in part.polynomial.terms), self.constant)

    def touching(self, dims: frozenset[Dim]) -> Staircase:
        """Only the parts that depend on one of `dims`."""
        return Staircase(tuple(part for part in self.parts if part.polynomial.touching(dims).terms))

    def instead(self, dims: Mapping[Dim, Dim]) -> Staircase:
        """The same cost with other Dims in the places of these."""
        return Staircase(
            tuple(
                Stair(
                    Polynomial(
                        tuple(
                            Term(term.owner, term.factor, tuple(replaced(axis, dims) for axis in term.axes))
                            for term in part.polynomial.terms
                        ),
                        part.polynomial.constant,
                    ),
                    {dims.get(dim, dim): step for dim, step in part.steps.items()},
                )
                for part in self.parts
            ),
            self.constant,
        )


Price = Polynomial | Staircase


Widths = TypeVar("Widths", int, np.ndarray)


def in_steps(width: Widths, step: Widths) -> Widths:
    """The width, rounded up to whole steps."""
    whole: Widths = -(-width // step) * step
    return whole


@dataclass(frozen=True, slots=True)
class Costs:
    """
    Multiply-accumulates of one sample, parameters (learned numbers, plain or quantised), and bytes of the file.

    `latency`, in milliseconds, is there once it was measured.
    """

    macs: Polynomial
    params: Polynomial
    bytes: Polynomial
    latency: Staircase | None = None


def costs_of(graph: Graph, typing: Typing) -> Costs:
    """The three costs of the model."""
    batch = batch_dims(graph, typing)
    macs = []
    for op, fact in facts_where(typing, Macs):
        axes = tuple(typing.solver.resolve(axis) for axis in fact.factors)
        macs.append(Term(op.node.name, 1.0, tuple(replaced(axis, dict.fromkeys(batch, Dim(1))) for axis in axes)))
    params, sizes, stored = [], [], 0.0
    for name, constant in graph.constants.items():
        axes = typing.axes(first_typed(name, graph, typing))
        each = ELEMENT_BYTES.get(constant.tensor.data_type, 0)
        sizes.append(Term(name, each, axes))
        stored += each * constant.size
        if constant.is_weight:
            params.append(Term(name, 1.0, axes))
    rest = graph.file_bytes - stored
    return Costs(Polynomial(tuple(macs)), Polynomial(tuple(params)), Polynomial(tuple(sizes), rest))


def batch_dims(graph: Graph, typing: Typing) -> frozenset[Dim]:
    """The Dims of the inputs' first axis, where that is dynamic."""
    if not graph.has_batch:
        return frozenset()
    firsts = [typing.tensors[port.name].axes[0] for port in graph.inputs]
    return frozenset(leaf for first in firsts for leaf in leaves(typing.solver.resolve(first)))


def replaced(axis: Axis, dims: Mapping[Dim, Dim]) -> Axis:
    """The axis with other Dims in the places of these."""
    match axis:
        case Dim():
            return dims.get(axis, axis)
        case Sum(parts):
            return sum_of(replaced(part, dims) for part in parts)
        case Product(factors):
            return product_of(replaced(factor, dims) for factor in factors)


def first_typed(name: str, graph: Graph, typing: Typing) -> Tensor:
    """The constant as its first reader sees it."""
    for node, index in graph.readers.get(name, ()):
        if (node.position, index) in typing.uses:
            return typing.uses[node.position, index]
    return typing.tensors[name]
