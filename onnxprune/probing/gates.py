"""
Gates: a vector of ones multiplied into every sink of a group.

A sink sums over an axis; with the gate of a channel at 0 the sum loses exactly the channel's term, which **is** the
channel's removal. In a quantised tensor the zero point stands for zero, and gates close to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.codings import PLAIN, Level, level_of
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Use, facts_where
from onnxprune.rules.axes import Axis, Dim, Product, Sum, leaves
from onnxprune.rules.facts import Contracted, Quantized
from onnxprune.rules.operation import Op, Tensor


@dataclass(frozen=True, slots=True)
class Gate:
    """
    Where a group is closed: axis number `axis` of tensor `tensor`, as the sinks at `uses` read it.

    `batch_axis` is the axis of the tensor that counts samples, None if there is no such axis. `zeros` are the numbers
    that stand for zero there, one for all or one for each position of the axis; None: it is zero.
    """

    tensor: str
    axis: int
    type: Axis
    rank: int
    batch_axis: int | None
    uses: tuple[Use, ...]
    zeros: tuple[float, ...] | None = None


def gates_of(couplings: Couplings, dims: Iterable[Dim]) -> tuple[Gate, ...]:
    """
    One gate for each tensor axis that a sink of these Dims sums over.

    Where a zero point is computed, the numbers that it is computed from are summed over, and have the gate.
    """
    wanted = set(dims)
    gates: dict[tuple[str, int, Level], Gate] = {}
    for op, fact in facts_where(couplings.typing, Contracted):
        types = couplings.typing.axes(fact.tensor)
        level = level_at(couplings, op, fact.tensor)
        if wanted.isdisjoint(leaves(types[fact.axis])) or (
            level.point and level.point not in couplings.graph.constants
        ):
            continue
        use = op.node.position, op.inputs.index(fact.tensor)
        key = fact.tensor.name, fact.axis, level
        known = gates[key].uses if key in gates else ()
        gates[key] = Gate(
            tensor=fact.tensor.name,
            axis=fact.axis,
            type=types[fact.axis],
            rank=len(types),
            batch_axis=batch_axis(types, couplings.batch),
            uses=(*known, use),
            zeros=zeros_at(level, fact.axis, couplings),
        )
    return tuple(gates.values())


def level_at(couplings: Couplings, op: Op, tensor: Tensor) -> Level:
    """What stands for zero in a tensor as a node reads it."""
    facts = couplings.typing.stated[op.node.position].facts
    coded = (fact for fact in facts if isinstance(fact, Quantized) and fact.tensor is tensor)
    return next((level_of(fact, couplings.graph) for fact in coded), PLAIN)


def zeros_at(level: Level, axis: int, couplings: Couplings) -> tuple[float, ...] | None:
    """The numbers of a level along an axis; a level along another axis has no such numbers, and zero must do."""
    if level.point:
        numbers = couplings.graph.constants[level.point].array().astype(np.float64)
        return tuple(numbers.tolist()) if level.axis == axis and numbers.ndim == 1 else None
    return (level.number,) if level.number else None


def channels_at(axis: Axis, dims: Sequence[Dim]) -> tuple[np.ndarray, ...]:
    """For each time that one of a group's Dims stands in the axis: the group's channel at each position, or -1."""
    starts = np.cumsum([0, *(dim.size for dim in dims)])
    return tuple(
        np.where(channels >= 0, channels + start, -1)
        for dim, start in zip(dims, starts, strict=False)
        for channels in standings(axis, dim)
    )


def standings(axis: Axis, dim: Dim) -> Iterator[np.ndarray]:
    """
    For each time that `dim` stands in the axis, which of its positions is where; -1 for none.

    Twice in what a table of all pairs of channels is flattened to: a channel then has a row and a column.
    """
    match axis:
        case Dim():
            if axis is dim:
                yield np.arange(dim.size)
        case Sum(parts):
            ends = np.cumsum([part.size for part in parts])
            for part, end in zip(parts, ends, strict=True):
                for standing in standings(part, dim):
                    yield np.pad(standing, (end - part.size, axis.size - end), constant_values=-1)
        case Product(factors):
            for number, factor in enumerate(factors):
                inside = math.prod(other.size for other in factors[number + 1 :])
                outside = math.prod(other.size for other in factors[:number])
                for standing in standings(factor, dim):
                    yield np.tile(np.repeat(standing, inside), outside)


def batch_axis(types: Iterable[Axis], batch: frozenset[Dim]) -> int | None:
    """The axis along which samples lie one behind the other, each in one piece; None if there is none."""
    with_batch = [(number, axis) for number, axis in enumerate(types) if not batch.isdisjoint(leaves(axis))]
    if len(with_batch) != 1:
        return None
    ((number, axis),) = with_batch
    outermost = axis.factors[0] if isinstance(axis, Product) else axis
    return number if outermost in batch else None
