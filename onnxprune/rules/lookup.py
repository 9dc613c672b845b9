"""Operators that read, write or rank positions by number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.rules.facts import Divisor, Equal, Fact, Frozen, HoldersOf, Lookup, Zero
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import copied_in_order, fixed, moved, same_axes


def by_number(op: Op) -> str:
    return f"{op.node.label} looks positions up by number"


def written_by_number(op: Op) -> str:
    return f"{op.node.label} writes positions by number"


def numbers_stay(index: Tensor) -> Iterator[Fact]:
    """Zeroing leaves the numbers of positions alone."""
    if index.own:
        yield Divisor(index)


def looked_up(op: Op, x: Tensor, axis: int, index: Tensor, numbers: np.ndarray | None) -> Iterator[Fact]:
    """Axis `axis` of the output holds the positions of `x` that stored `numbers` name; computed ones may be any."""
    yield from told_by_number(x, op.output(), axis, index, numbers, by_number(op))


def told_by_number(
    whole: Tensor, part: Tensor, axis: int, index: Tensor, numbers: np.ndarray | None, reason: str
) -> Iterator[Fact]:
    """Along `axis`, a part stands at the positions of a whole that input 1 stores, or else wherever that says."""
    if numbers is None or not index.own or not numbers.size:
        yield Frozen(whole[axis], reason)
        return
    positions = tuple(int(number) % whole[axis].size for number in numbers)
    yield Lookup(whole[axis], part[axis], axis, positions, place=1)


@rule("Gather")
def gather(op: Op) -> Iterator[Fact]:
    """Positions of one axis looked up by index; a stored vector of indices follows them, any other fixes the axis."""
    x, index, y = op.input(0), op.input(1), op.output()
    along = op.axis(x)
    for before, after in zip(x[:along], y[:along], strict=True):
        yield Equal(before, after)
    for before, after in zip(x[along + 1 :], y[along + index.rank :], strict=True):
        yield Equal(before, after)
    for before, after in zip(index.axes, y[along : along + index.rank], strict=True):
        yield Equal(before, after)
    yield from moved(op)
    yield from numbers_stay(index)
    if index.rank == 1 and x.rank > 1:
        yield from looked_up(op, x, along, index, index.value)
        return
    yield Frozen(x[along], by_number(op))
    yield from fixed(index.axes, "indices") if index.value is not None else ()
    if x.rank == 1 and index.value is not None:
        yield from copied_in_order(op, [(0, int(number) % x[0].size) for number in index.value.reshape(-1)])


@rule("GatherElements")
def gather_elements(op: Op) -> Iterator[Fact]:
    """Each number looked up along one axis; where all look up the same stored positions, these follow them."""
    x, index, y = op.input(0), op.input(1), op.output()
    along = op.axis(x)
    yield from same_axes(index, y)
    yield from shared_or_cut(op, x, y, along)
    yield from moved(op)
    yield from numbers_stay(index)
    yield from looked_up(op, x, along, index, alike_along(index.value, along))


def alike_along(numbers: np.ndarray | None, axis: int) -> np.ndarray | None:
    """The one vector along `axis` that all others equal, if there is one."""
    if numbers is None or not numbers.size:
        return None
    vectors = np.moveaxis(numbers, axis, -1).reshape(-1, numbers.shape[axis])
    return vectors[0] if bool((vectors == vectors[0]).all()) else None


def shared_or_cut(op: Op, whole: Tensor, part: Tensor, along: int) -> Iterator[Fact]:
    """Axes other than `along` are the same, unless one is cut short."""
    for number, (one, other) in enumerate(zip(whole.axes, part.axes, strict=True)):
        if number == along:
            continue
        if one.size == other.size:
            yield Equal(one, other)
        else:
            yield Frozen(one, f"{op.node.label} reads its first positions only")
            yield Frozen(other, f"{op.node.label} reads its first positions only")


@rule("GatherND")
@rule("GatherND", domain="com.microsoft")
def gather_nd(op: Op) -> Iterator[Fact]:
    """Slices looked up by the numbers of several axes at once; batch axes and those of the slices are free."""
    x, index, y = op.input(0), op.input(1), op.output()
    batch, depth = int(op.attribute("batch_dims", 0)), index[-1].size
    for before, after in zip(x[:batch], y[:batch], strict=True):
        yield Equal(before, after)
    for before, after in zip(index[:-1], y[: index.rank - 1], strict=True):
        yield Equal(before, after)
    for before, after in zip(x[batch + depth :], y[index.rank - 1 :], strict=True):
        yield Equal(before, after)
    yield from fixed(index[-1:], "indices")
    yield from moved(op)
    yield from numbers_stay(index)
    if (batch, depth, index.rank, y.rank) == (0, 1, 2, x.rank):
        yield from looked_up(op, x, 0, index, None if index.value is None else index.value.reshape(-1))
        return
    for axis in x[batch : batch + depth]:
        yield Frozen(axis, by_number(op))


@rule("ScatterND")
def scatter_nd(op: Op) -> Iterator[Fact]:
    """Slices written at places given by number, which follow where stored; the axes of the slices are free."""
    data, index, updates, y = op.input(0), op.input(1), op.input(2), op.output()
    depth, written = index[-1].size, index.rank - 1
    yield from same_axes(data, y)
    numbers = index.value.reshape(-1) if index.value is not None and (depth, index.rank) == (1, 2) else None
    yield from told_by_number(data, updates, 0, index, numbers, written_by_number(op))
    if numbers is None or not index.own:
        for axis in (*data[1:depth], *updates[:written]):
            yield Frozen(axis, written_by_number(op))
    for before, after in zip(index[:-1], updates[:written], strict=True):
        yield Equal(before, after)
    for before, after in zip(data[depth:], updates[written:], strict=True):
        yield Equal(before, after)
    yield from fixed(index[-1:], "indices")
    yield from numbers_stay(index)
    yield from zero_after_writing(op, data, updates)


@rule("ScatterElements", "Scatter")
def scatter_elements(op: Op) -> Iterator[Fact]:
    """Numbers written along one axis at places given by number, which follow where all are alike; others are free."""
    data, index, updates, y = op.input(0), op.input(1), op.input(2), op.output()
    along = op.axis(data)
    yield from same_axes(data, y)
    yield from same_axes(index, updates)
    yield from shared_or_cut(op, data, updates, along)
    yield from numbers_stay(index)
    numbers = alike_along(index.value, along)
    yield from told_by_number(data, updates, along, index, numbers, written_by_number(op))
    if numbers is None or not index.own:
        yield Frozen(updates[along], written_by_number(op))
    yield from zero_after_writing(op, data, updates)


@rule("TensorScatter")
def tensor_scatter(op: Op) -> Iterator[Fact]:
    """A run of positions of one axis overwritten, wherever it starts; other axes are free."""
    past, update, present = op.input(0), op.input(1), op.output()
    along = op.axis(past, default=-2)
    yield from same_axes(past, present)
    yield from same_axes(past, update, except_=(along,))
    for axis in (past[along], update[along]):
        yield Frozen(axis, written_by_number(op))
    yield from zero_after_writing(op, past, update)


def zero_after_writing(op: Op, data: Tensor, updates: Tensor) -> Iterator[Fact]:
    """Zero where the data is and what is written to the place, if anything; multiplied, where the data is."""
    multiplied = op.attribute("reduction", "none") == "mul"
    yield Zero(op.output(), data if multiplied else HoldersOf((data, updates)))


@rule("TopK")
def top_k(op: Op) -> Iterator[Fact]:
    """The largest along one axis, which stays; every other axis is free."""
    x = op.input(0)
    along = op.axis(x, default=-1)
    yield Frozen(x[along], f"{op.node.label} ranks its positions")
    for y in op.results:
        yield from same_axes(x, y, except_=(along,))
        yield Frozen(y[along], f"{op.node.label} ranks its positions")
    if op.outputs[0] is not None:
        yield Zero(op.outputs[0], x, moved=True)


@rule("Compress")
def compress(op: Op) -> Iterator[Fact]:
    """Positions of one axis picked by flags, one each; other axes are free."""
    x, y = op.input(0), op.output()
    if op.attribute("axis") is None:
        raise NotUnderstood("it picks single numbers")
    along = op.axis(x)
    yield from same_axes(x, y, except_=(along,))
    for axis in (x[along], y[along]):
        yield Frozen(axis, f"{op.node.label} picks its positions by number")
    yield from moved(op)


@rule("Unique")
@rule("Unique", domain="com.microsoft")
def unique(op: Op) -> Iterator[Fact]:
    """Everything that is compared stays."""
    for tensor in (op.input(0), *op.results):
        for axis in tensor.axes:
            yield Frozen(axis, f"{op.node.label} compares all that stands in it")


@rule("OneHot")
def one_hot(op: Op) -> Iterator[Fact]:
    """A new axis of classes, which stay; the axes of the indices are free."""
    index, y = op.input(0), op.output()
    along = op.axis(y, default=-1)
    yield from fixed((y[along],), "classes by number")
    others = [axis for number, axis in enumerate(y.axes) if number != along]
    for before, after in zip(index.axes, others, strict=True):
        yield Equal(before, after)
    yield from numbers_stay(index)


@rule("ReverseSequence")
def reverse_sequence(op: Op) -> Iterator[Fact]:
    """The first positions in time turned round; every axis but time is free."""
    x, lengths, y = op.input(0), op.input(1), op.output()
    time, batch = int(op.attribute("time_axis", 0)), int(op.attribute("batch_axis", 1))
    yield from same_axes(x, y)
    yield Frozen(x[time], f"{op.node.label} turns it round")
    yield Equal(lengths[0], x[batch])
    yield from numbers_stay(lengths)
    yield from moved(op)


@rule("Trilu")
@rule("Trilu", domain="com.microsoft")
def trilu(op: Op) -> Iterator[Fact]:
    """A triangle of the last two axes, whose positions are told apart by number."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    for axis in x[-2:]:
        yield Frozen(axis, f"{op.node.label} tells its positions apart by number")
    yield Zero(y, x)
