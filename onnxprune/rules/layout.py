"""Operators that move, cut, join or repeat, without arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.reading.numbers import numbers
from onnxprune.rules.axes import Axis, product_of, sum_of
from onnxprune.rules.facts import AllOf, Copied, Equal, Fact, Frozen, HoldersOf, Lookup, Measured, Stores, Zero
from onnxprune.rules.operation import NotUnderstood, Op
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import copied_in_order, fixed, free, moved, same_axes, stored_sizes


@rule("Reshape")
def reshape(op: Op) -> Iterator[Fact]:
    """The same numbers in the same order."""
    x, y = op.input(0), op.output()
    op.numbers("shape", 1)
    yield Equal(product_of(x.axes), product_of(y.axes))
    yield from stored_sizes(1, y.axes)
    yield from moved(op)
    yield from copied_in_order(op)


@rule("Flatten")
def flatten(op: Op) -> Iterator[Fact]:
    """The axes before `axis` become one, and those from it on another."""
    x, y = op.input(0), op.output()
    at = int(op.attribute("axis", 1))
    at = at + x.rank if at < 0 else at
    yield Equal(product_of(x[:at]), y[0])
    yield Equal(product_of(x[at:]), y[1])
    yield from moved(op)


@rule("Transpose")
def transpose(op: Op) -> Iterator[Fact]:
    """Axes in another order."""
    x, y = op.input(0), op.output()
    order = op.attribute("perm") or range(x.rank - 1, -1, -1)
    for target, source in enumerate(order):
        yield Equal(x[source], y[target])
    yield from moved(op)


@rule("Squeeze")
def squeeze(op: Op) -> Iterator[Fact]:
    """Axes of one position go."""
    x, y = op.input(0), op.output()
    axes = op.numbers("axes", 1)
    if axes is None:
        for axis in x.axes:
            if axis.size > 1:
                yield Frozen(axis, f"{op.node.label} without axes would drop it, were it one wide")
    gone = {axis % x.rank for axis in axes or ()} or {n for n, axis in enumerate(x.axes) if axis.size == 1}
    left = [axis for number, axis in enumerate(x.axes) if number not in gone]
    for before, after in zip(left, y.axes, strict=True):
        yield Equal(before, after)
    yield from moved(op)
    yield from copied_in_order(op)


@rule("Unsqueeze")
def unsqueeze(op: Op) -> Iterator[Fact]:
    """Axes of one position come."""
    x, y = op.input(0), op.output()
    new = {axis % y.rank for axis in op.numbers("axes", 1) or ()}
    old = [axis for number, axis in enumerate(y.axes) if number not in new]
    for before, after in zip(x.axes, old, strict=True):
        yield Equal(before, after)
    yield from moved(op)
    yield from copied_in_order(op)


@rule("Concat")
def concat(op: Op) -> Iterator[Fact]:
    """Inputs laid end to end along one axis; every other axis is shared."""
    joined = op.output()
    along = op.axis(joined)
    yield Equal(joined[along], sum_of(part[along] for part in op.tensors))
    for part in op.tensors:
        yield from same_axes(part, joined, except_=(along,))
    yield Zero(joined, HoldersOf(op.tensors), moved=True)
    if joined.rank == 1:
        sources = [(index, element) for index, part in enumerate(op.tensors) for element in range(part[0].size)]
        yield from copied_in_order(op, sources)


@rule("Split")
def split(op: Op) -> Iterator[Fact]:
    """One axis cut into the outputs."""
    x = op.input(0)
    along = op.axis(x)
    if len(op.results) < len(op.outputs):
        raise NotUnderstood("an output is not used")
    yield Equal(x[along], sum_of(part[along] for part in op.results))
    for part in op.results:
        yield from same_axes(x, part, except_=(along,))
        yield Zero(part, x, moved=True)
    place = "split" if op.opset < 13 else 1
    for element, part in enumerate(op.results):
        yield Stores(place, element, part[along], replaces="num_outputs")
    start = 0
    for part in op.results:
        if x.rank == 1 and x[0].size <= 64:
            yield Copied(part, tuple((0, start + element) for element in range(part[0].size)))
            start += part[0].size


@rule("Slice")
def slice_(op: Op) -> Iterator[Fact]:
    """A run of positions of some axes, or every so many of one; a step among several fixes its axis."""
    x, y = op.input(0), op.output()
    starts, ends = op.numbers("starts", 1) or [], op.numbers("ends", 2) or []
    axes = [axis % x.rank for axis in op.numbers("axes", 3) or range(len(starts))]
    steps = op.numbers("steps", 4) or [1] * len(starts)
    yield from moved(op)
    yield from same_axes(x, y, except_=axes)
    for element, (axis, start, end, step) in enumerate(zip(axes, starts, ends, steps, strict=True)):
        if step != 1 and x.rank > 1 and len(axes) == 1:
            yield Lookup(x[axis], y[axis], axis, tuple(range(x[axis].size)[start:end:step]), place=None)
            continue
        if step != 1:
            yield from frozen_pair(x[axis], y[axis], f"{op.node.label} takes every {step}th position of it")
            continue
        first = range(x[axis].size)[start:end].start
        before, after = free(first), free(x[axis].size - first - y[axis].size)
        yield Equal(x[axis], sum_of((before, y[axis], after)))
        yield from stored_bound(op.place("starts", 1), element, start, before, x[axis])
        yield from stored_bound(op.place("ends", 2), element, end, sum_of((before, y[axis])), x[axis])
    if x.rank == 1 and len(starts) == 1:
        yield from copied_in_order(op, [(0, number) for number in range(x[0].size)[starts[0] : ends[0] : steps[0]]])


def stored_bound(place: str | int, element: int, bound: int, before: Axis, whole: Axis) -> Iterator[Fact]:
    """A bound of Slice counts from the front, or, when negative, from the back."""
    if bound >= 0:
        yield Stores(place, element, before)
    elif bound + whole.size >= 0:
        behind = free(whole.size - before.size)
        yield Equal(whole, sum_of((before, behind)))
        yield Stores(place, element, behind, sign=-1)


def frozen_pair(before: Axis, after: Axis, reason: str) -> Iterator[Fact]:
    yield Frozen(before, reason)
    yield Frozen(after, reason)


@rule("Pad")
@rule("Pad", domain="com.microsoft")
def pad(op: Op) -> Iterator[Fact]:
    """Constant positions before and after; padding with copies of others fixes the axis."""
    x, y = op.input(0), op.output()
    amounts = op.numbers("pads", 1) or []
    axes = [axis % x.rank for axis in op.numbers("axes", 3) or range(x.rank)]
    constant = op.attribute("mode", "constant") == "constant"
    yield from same_axes(x, y, except_=axes)
    for element, axis in enumerate(axes):
        left, right = amounts[element], amounts[element + len(axes)]
        if left == right == 0:
            yield Equal(x[axis], y[axis])
        elif min(left, right) < 0 or not constant:
            yield from frozen_pair(x[axis], y[axis], f"{op.node.label} crops it or repeats its positions")
        else:
            before, after = free(left), free(right)
            yield Equal(y[axis], sum_of((before, x[axis], after)))
            yield Stores(op.place("pads", 1), element, before)
            yield Stores(op.place("pads", 1), element + len(axes), after)
    padding = padded_with(op)
    if constant and padding is not None:
        yield Zero(y, HoldersOf((x,), padding), moved=True)


def padded_with(op: Op) -> float | None:
    """The constant that the positions before and after hold; None where it is computed."""
    value = op.optional(2)
    if value is None:
        return float(op.attribute("value", 0.0))
    return None if value.value is None else float(value.value.reshape(-1)[0])


@rule("Expand")
def expand(op: Op) -> Iterator[Fact]:
    """Axes of one position are repeated as often as the shape says."""
    x, y = op.input(0), op.output()
    wanted = op.numbers("shape", 1) or []
    for from_right in range(1, x.rank + 1):
        if x[-from_right].size == y[-from_right].size:
            yield Equal(x[-from_right], y[-from_right])
    for element, axis in enumerate(y[y.rank - len(wanted) :]):
        yield Stores(1, element, axis)
    yield from moved(op)


@rule("Tile")
def tile(op: Op) -> Iterator[Fact]:
    """Each axis laid end to end with itself."""
    x, y = op.input(0), op.output()
    for repeats, before, after in zip(op.numbers("repeats", 1) or [], x.axes, y.axes, strict=True):
        times = free(repeats)
        yield from fixed((times,), "repeats")
        yield Equal(after, product_of((times, before)))
    yield from moved(op)


@rule("Shape")
def shape(op: Op) -> Iterator[Fact]:
    """The widths of the input's axes."""
    x, y = op.input(0), op.output()
    chosen = x.axes[op.attribute("start", 0) : op.attribute("end", x.rank)]
    yield from fixed(y.axes, "shape arithmetic")
    yield Measured(y, tuple(chosen))


@rule("Size")
def size(op: Op) -> Iterator[Fact]:
    """The number of positions of the input."""
    yield Measured(op.output(), (product_of(op.input(0).axes),))


@rule("ConstantOfShape")
def constant_of_shape(op: Op) -> Iterator[Fact]:
    """One number everywhere."""
    y = op.output()
    op.numbers("shape", 0)
    yield from stored_sizes(0, y.axes)
    held = op.attribute("value")
    if held is None or not np.any(numbers(held)):
        yield Zero(y, AllOf(()))


@rule("Constant")
def constant(op: Op) -> Iterator[Fact]:
    """Read as a constant; says nothing more."""
    if op.attribute("sparse_value") is not None:
        raise NotUnderstood("it holds a sparse tensor")
    return iter(())


@rule("Range")
def range_(op: Op) -> Iterator[Fact]:
    """Numbers that tell positions apart."""
    yield from fixed(op.output().axes, "indices")
