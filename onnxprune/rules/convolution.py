"""Convolutions, pooling and resizing."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.axes import Axis, product_of
from onnxprune.rules.facts import (
    AllOf,
    AnyOf,
    Contracted,
    Equal,
    Fact,
    Frozen,
    Macs,
    MayAdd,
    SideBySide,
    Stores,
    Unsummed,
    Zero,
)
from onnxprune.rules.operation import Op
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import fixed, free, moved, same_axes, stored_sizes


@rule("Conv")
def conv(op: Op) -> Iterator[Fact]:
    """
    Channels in, channels out, in `group` groups::

        x [n, G·i, *]   w [G·o, i, *kernel]   b [G·o]   ->   y [n, G·o, *]
    """
    x, w, y = op.input(0), op.input(1), op.output()
    groups = int(op.attribute("group", 1))
    group, each_out = free(groups), free(w[0].size // groups)
    yield Equal(x[1], product_of((group, w[1])))
    yield Equal(w[0], product_of((group, each_out)))
    yield from convolved(op, product_of((group, each_out)))
    yield from side_by_side(op, group, w[1], made=0)
    yield Macs((y[0], *y[1:], w[1], *w[2:]))


@rule("DeformConv")
def deform_conv(op: Op) -> Iterator[Fact]:
    """As Conv, read at places that are offset by data; channels that share offsets shrink evenly."""
    x, w, offset, bias, mask, y = op.input(0), op.input(1), op.input(2), op.optional(3), op.optional(4), op.output()
    groups, offsets = int(op.attribute("group", 1)), free(int(op.attribute("offset_group", 1)))
    group, each_out = free(groups), free(w[0].size // groups)
    yield Equal(x[1], product_of((group, w[1])))
    yield Equal(w[0], product_of((group, each_out)))
    yield Equal(x[1], product_of((offsets, free(x[1].size // offsets.size))))
    yield Equal(x[0], y[0])
    yield Equal(y[1], w[0])
    others = [axis for tensor in (offset, mask) if tensor is not None for axis in tensor[1:]]
    yield from fixed((offsets, *others, *x[2:], *y[2:], *w[2:]), "spatial")
    yield Contracted(x, 1, by=(x, w))
    if groups > 1:
        yield Stores("group", None, group)
    if bias is not None:
        yield Equal(bias[0], y[1])
    yield Zero(y, w if bias is None else AllOf((w, bias)))
    yield Macs((y[0], *y[1:], w[1], *w[2:]))


@rule("ConvTranspose")
def conv_transpose(op: Op) -> Iterator[Fact]:
    """
    As Conv, with the weight's channels the other way round::

        x [n, G·i, *]   w [G·i, o, *kernel]   b [G·o]   ->   y [n, G·o, *]
    """
    x, w = op.input(0), op.input(1)
    groups = int(op.attribute("group", 1))
    group, each_in = free(groups), free(w[0].size // groups)
    yield Equal(x[1], product_of((group, each_in)))
    yield Equal(w[0], product_of((group, each_in)))
    yield from convolved(op, product_of((group, w[1])))
    yield from side_by_side(op, group, each_in, made=1)
    yield Macs((x[0], *x[1:], w[1], *w[2:]))


def side_by_side(op: Op, group: Axis, each_in: Axis, *, made: int) -> Iterator[Fact]:
    """Where there is more than one group: how many, and what each of them is."""
    if group.size > 1:
        yield Stores("group", None, group)
        yield SideBySide(0, 1, None if op.optional(2) is None else 2, group, each_in, made)


def convolved(op: Op, out_channels: Axis) -> Iterator[Fact]:
    """What both kinds share: batch kept, space and kernel fixed, products summed over input channels."""
    x, w, y, bias = op.input(0), op.input(1), op.output(), op.optional(2)
    yield Equal(x[0], y[0])
    yield Equal(y[1], out_channels)
    yield from fixed((*x[2:], *y[2:]), "spatial")
    yield from fixed(w[2:], "kernel")
    yield Contracted(x, 1, by=(x, w), affine=True)
    product = AnyOf((Unsummed(x, (1,)), w))
    if bias is None:
        yield MayAdd(2, 1)
        yield Zero(y, product)
    else:
        yield Equal(bias[0], y[1])
        yield Zero(y, AllOf((product, bias)))


@rule("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalLpPool")
def pool(op: Op) -> Iterator[Fact]:
    """Each channel by itself; the places of maxima, if wanted, count through all channels."""
    x = op.input(0)
    if len(op.results) > 1:
        yield Frozen(x[1], f"{op.node.label} numbers its positions")
    for y in op.results:
        yield from same_axes(x, y, except_=range(2, y.rank))
        yield from fixed((*x[2:], *y[2:]), "spatial")
    yield from moved(op)


@rule("Resize", "Upsample")
def resize(op: Op) -> Iterator[Fact]:
    """Axes that keep their size are copied, the others are resampled."""
    x, y = op.input(0), op.output()
    axes = op.attribute("axes") or range(x.rank)
    for number, (before, after) in enumerate(zip(x.axes, y.axes, strict=True)):
        if before.size == after.size and number < 2:
            yield Equal(before, after)
        else:
            yield from fixed((before, after), "spatial")
    yield from moved(op)
    if op.optional(3) is not None:
        yield from stored_sizes(3, (y[axis] for axis in axes))


@rule("DepthToSpace")
def depth_to_space(op: Op) -> Iterator[Fact]:
    """Channels spread over blocks of space: depth, column, row order or channel first."""
    x, y, block = op.input(0), op.output(), int(op.attribute("blocksize"))
    order = (free(block), free(block))
    yield from fixed((*order, *x[2:], *y[2:]), "spatial")
    yield Equal(x[0], y[0])
    first = op.attribute("mode", "DCR") == "CRD"
    yield Equal(x[1], product_of((y[1], *order) if first else (*order, y[1])))
    yield from moved(op)


@rule("SpaceToDepth")
def space_to_depth(op: Op) -> Iterator[Fact]:
    """Blocks of space become channels."""
    x, y, block = op.input(0), op.output(), int(op.attribute("blocksize"))
    order = (free(block), free(block))
    yield from fixed((*order, *x[2:], *y[2:]), "spatial")
    yield Equal(x[0], y[0])
    yield Equal(y[1], product_of((*order, x[1])))
    yield from moved(op)
