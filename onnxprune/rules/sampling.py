"""Operators that work on space or time, channel by channel."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.axes import product_of
from onnxprune.rules.facts import AllOf, Equal, Fact, Frozen, Unsummed, Zero
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import fixed, free, same_axes


@rule("GridSample")
@rule("GridSample", domain="com.microsoft")
def grid_sample(op: Op) -> Iterator[Fact]:
    """Each channel read at the points of a grid."""
    x, grid, y = op.input(0), op.input(1), op.output()
    yield Equal(x[0], y[0])
    yield Equal(grid[0], y[0])
    yield Equal(x[1], y[1])
    yield from fixed((*x[2:], *y[2:], *grid[1:]), "spatial")
    yield Zero(y, x)


@rule("RoiAlign", "MaxRoiPool")
@rule("CropAndResize", domain="com.microsoft")
def regions(op: Op) -> Iterator[Fact]:
    """Each channel read in regions of each image."""
    x, rois, y = op.input(0), op.input(1), op.output()
    yield Frozen(x[0], f"{op.node.label} looks images up by number")
    yield Equal(rois[0], y[0])
    yield Equal(x[1], y[1])
    yield from fixed((*x[2:], *y[2:], *rois[1:]), "spatial")
    for index in op.tensors[2:3]:
        yield from fixed(index.axes, "regions")
    yield Zero(y, x)


@rule("Col2Im")
def col2im(op: Op) -> Iterator[Fact]:
    """Columns of blocks laid out as an image, each channel by itself."""
    x, y = op.input(0), op.output()
    places = free(x[1].size // y[1].size)
    yield from fixed((places, *x[2:], *y[2:]), "spatial")
    yield Equal(x[0], y[0])
    yield Equal(x[1], product_of((y[1], places)))
    yield Zero(y, x)


@rule("MaxUnpool")
def max_unpool(op: Op) -> Iterator[Fact]:
    """Maxima put back where they came from, which is told by a number that counts through all channels."""
    for tensor in (op.input(0), op.input(1), op.output()):
        yield Frozen(tensor[1], f"{op.node.label} numbers its positions")
        yield from fixed((tensor[0], *tensor[2:]), "spatial")


@rule("DFT")
def dft(op: Op) -> Iterator[Fact]:
    """Waves along one axis, which stays; the last axis holds real and imaginary parts."""
    x, y = op.input(0), op.output()
    along = transformed(op, x)
    yield from same_axes(x, y, except_=(along, x.rank - 1))
    for tensor in (x, y):
        yield Frozen(tensor[along], f"{op.node.label} runs over it")
        yield from fixed(tensor[-1:], "real and imaginary parts")
    yield Zero(y, Unsummed(x, (along, x.rank - 1)))


def transformed(op: Op, x: Tensor) -> int:
    if op.opset < 20:
        return op.axis(x, default=1)
    axes = op.numbers("axis", 2)
    return (axes[0] if axes else -2) % x.rank


@rule("STFT")
def stft(op: Op) -> Iterator[Fact]:
    """Waves in windows of a signal; only the batch is free."""
    x, y = op.input(0), op.output()
    yield Equal(x[0], y[0])
    yield from fixed((*x[1:], *y[1:]), "time and frequency")


@rule("Det")
@rule("Inverse", domain="com.microsoft")
def of_matrices(op: Op) -> Iterator[Fact]:
    """Something of each matrix in the last two axes, which stay."""
    x, y = op.input(0), op.output()
    for before, after in zip(x[:-2], y.axes, strict=False):
        yield Equal(before, after)
    for axis in (*x[-2:], *y[x.rank - 2 :]):
        yield Frozen(axis, f"{op.node.label} has no meaning for a part of a matrix")


@rule("CenterCropPad")
def center_crop_pad(op: Op) -> Iterator[Fact]:
    """Cropped or padded around the middle; an axis that keeps its size is free where no size is given for it."""
    x, y = op.input(0), op.output()
    axes = {int(axis) % x.rank for axis in op.attribute("axes") or range(x.rank)}
    yield from same_axes(x, y, except_=axes)
    for number in axes:
        for axis in (x[number], y[number]):
            yield Frozen(axis, f"{op.node.label} crops or pads it around its middle")
    yield Zero(y, x)


@rule("LRN")
def local_response(op: Op) -> Iterator[Fact]:
    """Each channel over what its neighbours are, so all channels stay."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    yield Frozen(x[1], f"{op.node.label} adds up neighbouring channels")
    yield Zero(y, x)


@rule("CausalConvWithState")
def causal_conv(op: Op) -> Iterator[Fact]:
    """Each channel convolved with its own kernel along time, going on from a state."""
    x, w, y = op.input(0), op.input(1), op.output()
    if x.rank != 3:
        raise NotUnderstood("it has other axes than batch, channels and time")
    yield from same_axes(x, y)
    yield Equal(w[0], x[1])
    yield from fixed((*w[1:], x[2]), "kernel and time")
    for state in (op.optional(3), *op.outputs[1:2]):
        if state is not None:
            yield Equal(state[0], x[0])
            yield Equal(state[1], x[1])
            yield from fixed(state[2:], "time")
    bias, past = op.optional(2), op.optional(3)
    if bias is not None:
        yield Equal(bias[0], x[1])
    yield Zero(y, w if bias is None else AllOf((w, bias)))
    for present in op.outputs[1:2]:
        if present is not None:
            yield Zero(present, x if past is None else AllOf((x, past)))
