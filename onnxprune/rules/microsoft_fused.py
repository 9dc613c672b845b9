"""Sums, activations and normalizations that ONNX Runtime makes one node of: `com.microsoft`."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.axes import Axis, product_of
from onnxprune.rules.facts import (
    AllOf,
    Contracted,
    Equal,
    Fact,
    Frozen,
    Inexact,
    Macs,
    Normalized,
    Pointwise,
    Stores,
    Zero,
)
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import broadcast, fixed, free, moved, same_axes

MS = "com.microsoft"


@rule("Gelu", "QuickGelu", domain=MS)
def gelu(op: Op) -> Iterator[Fact]:
    """One input, and f(0) = 0."""
    yield Pointwise()
    yield from same_axes(op.input(0), op.output())
    yield Zero(op.output(), op.input(0))


@rule("BiasAdd", "BiasGelu", "FastGelu", domain=MS)
def biased(op: Op) -> Iterator[Fact]:
    """All inputs added up, and f(0) = 0 behind that."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())
    yield Zero(op.output(), AllOf(op.tensors))


@rule("BiasSplitGelu", domain=MS)
def bias_split_gelu(op: Op) -> Iterator[Fact]:
    """One half of the channels times Gelu of the other."""
    x, bias, y = op.input(0), op.input(1), op.output()
    halves = free(2)
    yield from fixed((halves,), "halves")
    yield from same_axes(x, y, except_=(x.rank - 1,))
    yield Equal(x[-1], product_of((halves, y[-1])))
    yield Equal(bias[0], x[-1])
    yield Zero(y, AllOf((x, bias)))


@rule("BiasSoftmax", domain=MS)
def bias_softmax(op: Op) -> Iterator[Fact]:
    """Shares of a sum with a bias, over all axes from `axis` on."""
    x, bias, y = op.input(0), op.input(1), op.output()
    if x.rank != bias.rank:
        raise NotUnderstood("its bias has other axes")
    yield from same_axes(x, y)
    yield from broadcast((bias,), y)
    for axis in x[op.axis(x, default=1) :]:
        yield Frozen(axis, f"{op.node.label} shares one out over it")


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MS)
def skip_layer_norm(op: Op) -> Iterator[Fact]:
    """A sum of two tensors and a bias, normalised over the last axis; the sum is a second result."""
    x, skip, y = op.input(0), op.input(1), op.output()
    simplified = op.node.op_type != "SkipLayerNormalization"
    scale, shift = op.input(2), None if simplified else op.optional(3)
    bias = op.optional(3 if simplified else 4)
    yield from same_axes(x, y)
    yield from broadcast((skip,), y)
    yield from normalized(op, x, scale, shift, bias)
    added = (0, 1) if bias is None else (0, 1, 3 if simplified else 4)
    epsilon = float(op.attribute("epsilon", 1e-12))
    yield Normalized(added, (x.rank - 1,), 2, None if shift is None else 3, epsilon, not simplified)
    total = op.outputs[3] if len(op.outputs) > 3 else None
    if total is not None:
        yield from same_axes(x, total)
        yield Zero(total, AllOf((x, skip, *((bias,) if bias is not None else ()))))


def normalized(op: Op, x: Tensor, scale: Tensor, *others: Tensor | None) -> Iterator[Fact]:
    """A mean over the last axis; what scales, shifts and adds has one number for each of its positions."""
    y = op.output()
    for vector in (scale, *others):
        if vector is not None:
            yield Equal(vector[0], y[-1])
    for statistic in op.outputs[1:3]:
        if statistic is not None:
            yield from same_axes(x, statistic, except_=(x.rank - 1,))
    shift = others[0] if others else None
    yield Zero(y, scale if shift is None else AllOf((scale, shift)))


@rule("EmbedLayerNormalization", domain=MS)
def embed_layer_norm(op: Op) -> Iterator[Fact]:
    """Embeddings of words, places and segments added up and normalised over their width."""
    ids, y = op.input(0), op.output()
    for table in (op.input(2), op.input(3), op.optional(4)):
        if table is not None:
            yield Frozen(table[0], f"{op.node.label} looks positions up by number")
            yield Equal(table[1], y[2])
    scale, shift = op.input(5), op.input(6)
    for vector in (scale, shift):
        yield Equal(vector[0], y[2])
    for number in (0, 1, 7, 8):
        index = op.optional(number)
        yield from fixed(index.axes if index is not None else (), "sequence")
    yield Equal(ids[0], y[0])
    yield from fixed(y[1:2], "sequence")
    yield Inexact(y[2], f"{op.node.label} takes a mean over it")
    for total in op.outputs[2:3]:
        if total is not None:
            yield from same_axes(y, total)
    yield Zero(y, AllOf((scale, shift)))


@rule("GroupNorm", "SkipGroupNorm", domain=MS)
def group_norm(op: Op) -> Iterator[Fact]:
    """Whole groups may go; a channel inside a group is part of the group's mean."""
    x, scale, shift, y = op.input(0), op.input(1), op.input(2), op.output()
    channels = x.rank - 1 if op.attribute("channels_last", 1) else 1
    groups = free(int(op.attribute("groups")))
    each = free(x[channels].size // groups.size)
    yield from same_axes(x, y)
    yield Equal(y[channels], product_of((groups, each)))
    yield Inexact(each, f"{op.node.label} takes a mean over it")
    yield from fixed((axis for number, axis in enumerate(x.axes) if number not in (0, channels)), "spatial")
    for vector in (scale, shift, op.optional(4)):
        if vector is not None:
            yield Equal(vector[0], y[channels])
    for total in op.outputs[1:2]:
        if total is not None:
            yield from same_axes(x, total)
    if (skip := op.optional(3)) is not None:
        yield from (
            broadcast((skip,), y) if skip.rank == y.rank else (Equal(skip[0], y[0]), Equal(skip[-1], y[channels]))
        )
    yield Stores("groups", None, groups)
    yield Zero(y, AllOf((scale, shift)))


@rule("NhwcMaxPool", "MaxpoolWithMask", domain=MS)
def pool(op: Op) -> Iterator[Fact]:
    """Each channel by itself."""
    x, y = op.input(0), op.output()
    channels = x.rank - 1 if op.node.op_type == "NhwcMaxPool" else 1
    yield Equal(x[0], y[0])
    yield Equal(x[channels], y[channels])
    for tensor in (x, y):
        yield from fixed((axis for number, axis in enumerate(tensor.axes) if number not in (0, channels)), "spatial")
    for mask in op.tensors[1:]:
        yield from fixed(mask.axes, "spatial")
    yield Zero(y, x)


@rule("CDist", domain=MS)
def distances(op: Op) -> Iterator[Fact]:
    """Distances between the rows of two matrices: sums over their columns."""
    a, b, y = op.input(0), op.input(1), op.output()
    yield Equal(a[0], y[0])
    yield Equal(b[0], y[1])
    yield Equal(a[1], b[1])
    for operand in (a, b):
        yield Contracted(operand, 1, by=(operand,))
    yield Macs((y[0], y[1], a[1]))


@rule("RelativePositionBias", domain=MS)
def relative_position_bias(op: Op) -> Iterator[Fact]:
    """A number for each head and each distance of two places, looked up by the distance."""
    table, y = op.input(0), op.output()
    yield Frozen(table[0], f"{op.node.label} looks positions up by number")
    yield Equal(table[1], y[1])
    yield from fixed((y[0], *y[2:]), "sequence")
    yield Zero(y, table)


@rule("GatedRelativePositionBias", domain=MS)
def gated_relative_position_bias(op: Op) -> Iterator[Fact]:
    """A bias for each head, scaled by a gate that is computed from the queries; the width of heads stays."""
    q, q_bias, bias, w, y = op.input(0), op.input(1), op.input(2), op.input(3), op.output()
    heads = free(int(op.attribute("num_heads")))
    width: Axis = free(q_bias[0].size // heads.size)
    yield from fixed((width, *w.axes, *op.input(4).axes), "width of a gate")
    yield Equal(q_bias[0], product_of((heads, width)))
    yield Equal(q[0], y[0])
    yield Equal(q[q.rank - 1], q_bias[0])
    yield Equal(bias[1], heads)
    yield Equal(op.input(5)[1], heads)
    yield Equal(y[1], heads)
    yield from fixed((*bias[2:], *y[2:], *q[1:-1]), "sequence")
    yield Stores("num_heads", None, heads)
    yield Zero(y, bias)


@rule("ExpandDims", domain=MS)
def expand_dims(op: Op) -> Iterator[Fact]:
    """An axis of one position comes."""
    x, y = op.input(0), op.output()
    (new,) = op.numbers("axis", 1) or [0]
    old = [axis for number, axis in enumerate(y.axes) if number != new % y.rank]
    for before, after in zip(x.axes, old, strict=True):
        yield Equal(before, after)
    yield from moved(op)
