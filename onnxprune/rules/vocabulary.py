"""Phrases that many rules share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from onnxprune.rules.axes import Axis, Dim
from onnxprune.rules.facts import Copied, Equal, Fact, Frozen, Stores, Zero
from onnxprune.rules.operation import NotUnderstood, Op, Tensor

SMALL_VECTOR = 64
"""Longest vector whose elements are followed one by one through shape arithmetic."""


def same_axes(left: Tensor, right: Tensor, *, except_: Iterable[int] = ()) -> Iterator[Fact]:
    """Axis by axis, both tensors have the same positions."""
    apart = set(except_)
    if left.rank != right.rank:
        raise NotUnderstood(f"{left.name!r} has {left.rank} axes and {right.name!r} has {right.rank}")
    for number, (one, other) in enumerate(zip(left.axes, right.axes, strict=True)):
        if number not in apart:
            yield Equal(one, other)


def moved(op: Op) -> Iterator[Fact]:
    """The first output holds the numbers of the first input, moved about: zeros stay zeros."""
    yield Zero(op.output(), op.input(0), moved=True)


def fixed(axes: Iterable[Axis], what: str) -> Iterator[Fact]:
    """Axes that nobody would prune: space, time, kernels."""
    for axis in axes:
        yield Frozen(axis, what, by_nature=True)


def broadcast(operands: Iterable[Tensor], output: Tensor) -> Iterator[Fact]:
    """Numpy broadcasting: aligned from the right, an axis of one position is shared by all."""
    for operand in operands:
        for from_right in range(1, operand.rank + 1):
            axis, result = operand[-from_right], output[-from_right]
            if axis.size == result.size:
                yield Equal(axis, result)
            elif axis.size != 1:
                raise NotUnderstood(f"{operand.name!r} does not broadcast to {output.name!r}")


def copied_in_order(op: Op, sources: Iterable[tuple[int, int]] | None = None) -> Iterator[Fact]:
    """For the short vectors of shape arithmetic: which input element each output element is."""
    output = op.output()
    count = math.prod(output.shape)
    if output.rank <= 1 and count <= SMALL_VECTOR:
        pairs = tuple(sources) if sources is not None else tuple((0, element) for element in range(count))
        if len(pairs) == count:
            yield Copied(output, pairs)


def stored_sizes(place: str | int, axes: Iterable[Axis]) -> Iterator[Fact]:
    """A vector that holds the width of each axis in turn."""
    for element, axis in enumerate(axes):
        yield Stores(place, element, axis)


def free(size: int) -> Dim:
    """A dimension variable of the rule's own."""
    return Dim(size)
