"""
Gates: a vector of ones multiplied into every sink of a group.

A sink sums over an axis; with the gate of a channel at 0 the sum loses exactly the channel's term, which **is** the
channel's removal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Use, facts_where
from onnxprune.rules.axes import Axis, Dim, Product, leaves
from onnxprune.rules.facts import Contracted


@dataclass(frozen=True, slots=True)
class Gate:
    """
    Where a group is closed: axis number `axis` of tensor `tensor`, as the sinks at `uses` read it.

    `batch_axis` is the axis of the tensor that counts samples, None if there is no such axis.
    """

    tensor: str
    axis: int
    type: Axis
    rank: int
    batch_axis: int | None
    uses: tuple[Use, ...]


def gates_of(couplings: Couplings, dims: Iterable[Dim]) -> tuple[Gate, ...]:
    """One gate for each tensor axis that a sink of these Dims sums over."""
    wanted = set(dims)
    uses: dict[tuple[str, int], list[Use]] = {}
    axes: dict[tuple[str, int], tuple[Axis, ...]] = {}
    for op, fact in facts_where(couplings.typing, Contracted):
        resolved = couplings.typing.axes(fact.tensor)
        if wanted.isdisjoint(leaves(resolved[fact.axis])):
            continue
        index = next(number for number, tensor in enumerate(op.inputs) if tensor is fact.tensor)
        uses.setdefault((fact.tensor.name, fact.axis), []).append((op.node.position, index))
        axes[fact.tensor.name, fact.axis] = resolved
    return tuple(
        Gate(
            tensor=tensor,
            axis=axis,
            type=types[axis],
            rank=len(types),
            batch_axis=batch_axis(types, couplings.batch),
            uses=tuple(uses[tensor, axis]),
        )
        for (tensor, axis), types in axes.items()
    )


def batch_axis(types: Iterable[Axis], batch: frozenset[Dim]) -> int | None:
    """The axis along which samples lie one behind the other, each in one piece; None if there is none."""
    with_batch = [(number, axis) for number, axis in enumerate(types) if not batch.isdisjoint(leaves(axis))]
    if len(with_batch) != 1:
        return None
    ((number, axis),) = with_batch
    outermost = axis.factors[0] if isinstance(axis, Product) else axis
    return number if outermost in batch else None
