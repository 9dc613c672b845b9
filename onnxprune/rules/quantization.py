"""
Operators on quantised tensors, whose numbers stand for  scale · (number - zero point).

What such an operator says about its axes is what its counterpart on floats says; scales and zero points go along.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from onnxprune.rules.axes import product_of
from onnxprune.rules.convolution import conv
from onnxprune.rules.elementwise import keeps_zero, moves_zero, where, zero_where_all_are, zero_where_any_is
from onnxprune.rules.facts import (
    AllOf,
    AnyOf,
    Contracted,
    Copied,
    Divisor,
    Equal,
    Fact,
    Frozen,
    Macs,
    MayAdd,
    Pointwise,
    Quantized,
    SideBySide,
    Stores,
    Unsummed,
    Zero,
)
from onnxprune.rules.layout import concat
from onnxprune.rules.linear import gemm, matmul
from onnxprune.rules.microsoft_attention import attention_of_runtime
from onnxprune.rules.normalization import softmax
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.recurrent import recurrent, silent
from onnxprune.rules.registry import Rule, rule
from onnxprune.rules.vocabulary import fixed, free, same_axes

MICROSOFT = "com.microsoft"

FOR_FLOATS = (Copied, MayAdd, Pointwise, SideBySide)
"""What is said for the sake of numbers that can be fitted, or with the numbers of inputs."""


def as_floats(op: Op, counterpart: Rule, *inputs: Tensor | None) -> Iterator[Fact]:
    """What the counterpart on floats says of these inputs, but for what only holds for floats."""
    for fact in counterpart(replace(op, inputs=inputs)):
        if isinstance(fact, Contracted):
            yield replace(fact, affine=False)
        elif not isinstance(fact, FOR_FLOATS):
            yield fact


def plus_bias(facts: Iterator[Fact], bias: Tensor | None) -> Iterator[Fact]:
    """The same with a bias, one number for each position of the output's last axis."""
    for fact in facts:
        if isinstance(fact, Zero) and bias is not None:
            yield Equal(bias[-1], fact.output[-1])
            yield replace(fact, when=AllOf((fact.when, bias)))
        else:
            yield fact


def coded(tensor: Tensor, scale: Tensor | None, point: Tensor | None, axis: int = 1) -> Iterator[Fact]:
    """The tensor is quantised, by one scale for all, or by one for each position, or block of positions, of an axis."""
    axis %= max(tensor.rank, 1)
    for factor in (scale, point):
        if factor is None:
            continue
        yield Divisor(factor)
        if math.prod(factor.shape) == 1:
            continue
        if factor.rank == tensor.rank and factor[axis].size != tensor[axis].size:
            yield from in_blocks(tensor, factor, axis)
        elif factor.rank == tensor.rank:
            yield from same_axes(factor, tensor)
        elif factor.rank == 1:
            yield Equal(factor[0], tensor[axis])
        else:
            raise NotUnderstood(f"{factor.name!r} has {factor.rank} axes and {tensor.name!r} has {tensor.rank}")
    yield Quantized(tensor, scale, point, axis)


def in_blocks(tensor: Tensor, factor: Tensor, axis: int) -> Iterator[Fact]:
    """Each number of `factor` belongs to some positions of the axis that follow each other."""
    blocks, whole = factor[axis], tensor[axis]
    if whole.size % blocks.size:
        raise NotUnderstood(f"{whole.size} positions are no whole number of {blocks.size} blocks")
    block = free(whole.size // blocks.size)
    yield from same_axes(factor, tensor, except_=(axis,))
    yield from fixed((block,), "blocks of one scale")
    yield Equal(whole, product_of((blocks, block)))


@rule("QuantizeLinear")
@rule("QuantizeLinear", domain=MICROSOFT)
def quantize(op: Op) -> Iterator[Fact]:
    """Floats become quantised, zero the zero point; scale and zero point are those of all, of an axis or of blocks."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    yield from coded(y, op.input(1), op.optional(2), int(op.attribute("axis", 1)))
    yield Zero(y, x)


@rule("DequantizeLinear")
@rule("DequantizeLinear", domain=MICROSOFT)
def dequantize(op: Op) -> Iterator[Fact]:
    """Quantised numbers become floats, the zero point zero; scale and zero point as in QuantizeLinear."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    yield from coded(x, op.input(1), op.optional(2), int(op.attribute("axis", 1)))
    yield Zero(y, x)


@rule("DynamicQuantizeLinear")
def dynamic_quantize(op: Op) -> Iterator[Fact]:
    """Quantised by the range of all its numbers, which zeros do not widen: a sink of every axis."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    yield from ranged(x)
    if (scale := op.optional_output(1)) is not None and (point := op.optional_output(2)) is not None:
        yield Quantized(y, scale, point, 0)
        yield Zero(y, x)


def ranged(x: Tensor) -> Iterator[Fact]:
    """The least and the largest number of all count, or zero if that is beyond."""
    for axis in range(x.rank):
        yield Contracted(x, axis, by=(x,))


@rule("QLinearConv")
@rule("QLinearConv", domain=MICROSOFT)
def quantized_conv(op: Op) -> Iterator[Fact]:
    """As Conv; the weight may have a scale for each channel that it makes."""
    x, w = op.input(0), op.input(3)
    yield from integer_conv(op, x, w, op.optional(8))
    yield from coded(x, op.input(1), op.optional(2))
    yield from coded(w, op.input(4), op.optional(5), 0)
    yield from coded(op.output(), op.input(6), op.optional(7))


@rule("ConvInteger")
def conv_integer(op: Op) -> Iterator[Fact]:
    """As Conv, into 32 bits."""
    x, w = op.input(0), op.input(1)
    yield from integer_conv(op, x, w, None)
    yield from coded(x, None, op.optional(2))
    yield from coded(w, None, op.optional(3), 0)


def integer_conv(op: Op, x: Tensor, w: Tensor, bias: Tensor | None) -> Iterator[Fact]:
    """What Conv says of axes and sizes, with channels second or, with `channels_last`, at the end."""
    y, last = op.output(), bool(op.attribute("channels_last", 0))
    first = [Tensor(t.name, (t[0], t[-1], *t[1:-1])) if last else t for t in (x, y)]
    for fact in conv(replace(op, inputs=(first[0], w, bias), outputs=(first[1],))):
        if isinstance(fact, Equal | Frozen | Stores | Macs):
            yield fact
    channels = x.rank - 1 if last else 1
    product = AnyOf((Unsummed(x, (channels,)), w))
    yield Contracted(x, channels, by=(x, w))
    yield Zero(y, product if bias is None else AllOf((product, bias)))


@rule("QLinearMatMul")
def quantized_matmul(op: Op) -> Iterator[Fact]:
    """As MatMul; scales may be those of rows of the one and of columns of the other."""
    a, b = op.input(0), op.input(3)
    yield from as_floats(op, matmul, a, b)
    yield from coded(a, op.input(1), op.optional(2), -2)
    yield from coded(b, op.input(4), op.optional(5), -1)
    yield from coded(op.output(), op.input(6), op.optional(7), -2)


@rule("MatMulInteger")
def matmul_integer(op: Op) -> Iterator[Fact]:
    """As MatMul, into 32 bits."""
    a, b = op.input(0), op.input(1)
    yield from as_floats(op, matmul, a, b)
    yield from coded(a, None, op.optional(2), -2)
    yield from coded(b, None, op.optional(3), -1)


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(op: Op) -> Iterator[Fact]:
    """As MatMul of quantised tensors, into floats, plus a bias."""
    a, b = op.input(0), op.input(1)
    yield from plus_bias(as_floats(op, matmul, a, b), op.optional(6))
    yield from coded(a, op.input(2), op.optional(4), -2)
    yield from coded(b, op.input(3), op.optional(5), -1)


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(op: Op) -> Iterator[Fact]:
    """As MatMul of floats, which are quantised by the range of them all, with a quantised matrix, plus a bias."""
    a, b = op.input(0), op.input(1)
    product = (fact for fact in as_floats(op, matmul, a, b) if not isinstance(fact, Contracted))
    yield from plus_bias(product, op.optional(4))
    yield from ranged(a)
    yield from coded(b, op.input(2), op.optional(3), -1)


@rule("QGemm", domain=MICROSOFT)
def quantized_gemm(op: Op) -> Iterator[Fact]:
    """As Gemm; b may have a scale for each column, and without a scale for the output that is floats."""
    a, b, y = op.input(0), op.input(3), op.output()
    yield from as_floats(op, gemm, a, b, op.optional(6))
    yield from coded(a, op.input(1), op.optional(2))
    yield from coded(b, op.input(4), op.optional(5), 0 if op.attribute("transB", 0) else 1)
    if op.optional(7) is not None:
        yield from coded(y, op.optional(7), op.optional(8))


@rule("QLinearAdd", domain=MICROSOFT)
def quantized_add(op: Op) -> Iterator[Fact]:
    """Zero where both are."""
    yield from of_two(op, zero_where_all_are)


@rule("QLinearMul", domain=MICROSOFT)
def quantized_mul(op: Op) -> Iterator[Fact]:
    """Zero where one is."""
    yield from of_two(op, zero_where_any_is)


def of_two(op: Op, counterpart: Rule) -> Iterator[Fact]:
    """Two quantised operands and their quantised result."""
    a, b = op.input(0), op.input(3)
    yield from as_floats(op, counterpart, a, b)
    yield from coded(a, op.input(1), op.optional(2))
    yield from coded(b, op.input(4), op.optional(5))
    yield from coded(op.output(), op.input(6), op.optional(7))


def of_one(op: Op, counterpart: Rule) -> Iterator[Fact]:
    """One quantised operand and its quantised result."""
    x = op.input(0)
    yield from as_floats(op, counterpart, x)
    yield from coded(x, op.input(1), op.optional(2))
    yield from coded(op.output(), op.input(3), op.optional(4))


@rule("QLinearLeakyRelu", domain=MICROSOFT)
def quantized_leaky_relu(op: Op) -> Iterator[Fact]:
    """Zero where its input is."""
    yield from of_one(op, keeps_zero)


@rule("QLinearSigmoid", domain=MICROSOFT)
def quantized_sigmoid(op: Op) -> Iterator[Fact]:
    """Of zero it makes a half."""
    yield from of_one(op, moves_zero)


@rule("QLinearSoftmax", domain=MICROSOFT)
def quantized_softmax(op: Op) -> Iterator[Fact]:
    """As Softmax of the opset that it names."""
    yield from of_one(replace(op, opset=int(op.attribute("opset", op.opset))), softmax)


@rule("QLinearGlobalAveragePool", "QLinearAveragePool", domain=MICROSOFT)
def quantized_pool(op: Op) -> Iterator[Fact]:
    """Each channel by itself; with `channels_last` they are the last axis."""
    yield from of_one(op, pool_anywhere)


def pool_anywhere(op: Op) -> Iterator[Fact]:
    """Samples and channels stay apart; what is between or behind them is space."""
    x, y = op.input(0), op.output()
    apart = (0, x.rank - 1 if op.attribute("channels_last", 0) else 1)
    for number, (before, after) in enumerate(zip(x.axes, y.axes, strict=True)):
        if number in apart:
            yield Equal(before, after)
        else:
            yield from fixed((before, after), "spatial")
    yield Zero(y, x)


@rule("QLinearConcat", domain=MICROSOFT)
def quantized_concat(op: Op) -> Iterator[Fact]:
    """As Concat; each input has a scale and a zero point behind it."""
    parts = [tuple(op.optional(index + more) for more in range(3)) for index in range(2, len(op.inputs), 3)]
    for fact in as_floats(op, concat, *(part for part, _, _ in parts)):
        yield replace(fact, moved=False) if isinstance(fact, Zero) else fact
    for part, scale, point in parts:
        assert part is not None
        yield from coded(part, scale, point)
    yield from coded(op.output(), op.input(0), op.optional(1))


@rule("QLinearWhere", domain=MICROSOFT)
def quantized_where(op: Op) -> Iterator[Fact]:
    """One or the other, so zero where both are."""
    one, other = op.input(1), op.input(4)
    yield from as_floats(op, where, op.input(0), one, other)
    yield from coded(one, op.input(2), op.optional(3))
    yield from coded(other, op.input(5), op.optional(6))
    yield from coded(op.output(), op.input(7), op.optional(8))


@rule("QAttention", domain=MICROSOFT)
def quantized_attention(op: Op) -> Iterator[Fact]:
    """As com.microsoft.Attention of quantised tensors, into floats; queries, keys and values are equally wide."""
    x, w = op.input(0), op.input(1)
    widths = []
    for fact in as_floats(op, attention_of_runtime, x, w, op.optional(2), op.optional(5), op.optional(8)):
        if isinstance(fact, Stores) and fact.place == "qkv_hidden_sizes":
            widths.append(fact.size)
        else:
            yield fact
    yield from (Equal(widths[0], width) for width in widths[1:])
    yield from coded(x, op.input(3), op.optional(6), -1)
    yield from coded(w, op.input(4), op.optional(7), 1)


@rule("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(op: Op) -> Iterator[Fact]:
    """
    As LSTM, with quantised weights, the last two axes of which are the other way round, and scales for each row or all.

    Inputs and states are quantised by the range of all their numbers.
    """
    x, w, r = op.input(0), op.input(1), op.input(2)
    plain = replace(op, node=replace(op.node, op_type="LSTM"), inputs=op.inputs[:8])
    turned = tuple(Tensor(weight.name, (weight[0], weight[2], weight[1])) for weight in (w, r))
    for fact in recurrent(replace(plain, inputs=(x, *turned, *op.inputs[3:8]))):
        if isinstance(fact, Equal | Frozen | Stores | Macs):
            yield fact
    zeros = tuple(silent(plain))
    if not zeros:
        raise NotUnderstood("its states are quantised by their range, and its activations make something of zero")
    yield from zeros
    yield from ranged(x)
    yield Contracted(r, 1, by=(r,))
    for weight, scale, point in ((w, 8, 9), (r, 10, 11)):
        yield from coded_rows(weight, op.input(scale), op.optional(point))


def coded_rows(weight: Tensor, scale: Tensor, point: Tensor | None) -> Iterator[Fact]:
    """A weight [directions, summed, rows] with one scale for each direction or row, its zero points all zero."""
    zero = point is None or (point.value is not None and not point.value.any())
    if not zero and math.prod(scale.shape) > 1:
        raise NotUnderstood("its rows have zero points of their own")
    for factor in (scale, point):
        if factor is not None:
            yield Divisor(factor)
            yield Equal(factor[0], weight[0])
            yield from (Equal(rows, weight[2]) for rows in factor[1:])
    yield Quantized(weight, scale if math.prod(scale.shape) == 1 else None, None if zero else point, 0)


@rule("MatMulNBits", domain=MICROSOFT)
def matmul_few_bits(op: Op) -> Iterator[Fact]:
    """
    As MatMul with a matrix of few bits, its columns packed into bytes block by block, each with a scale::

        a [*, K]   b [n, blocks, bytes]   scales [n·blocks]   zero points [n·bytes]   bias [n]   ->   y [*, n]
    """
    a, b, scales, points, y = op.input(0), op.input(1), op.input(2), op.optional(3), op.output()
    bits, block = int(op.attribute("bits", 4)), free(int(op.attribute("block_size")))
    columns, blocks, bias = b[0], b[1], op.optional(5)
    yield from same_axes(a, y, except_=(a.rank - 1,))
    yield Equal(y[-1], columns)
    yield from fixed((block, b[2]), "blocks of one scale")
    if op.optional(4) is not None or a[-1].size != blocks.size * block.size:
        yield Frozen(a[-1], f"{op.node.label} reads it in another order, or its last block is not full")
        yield Frozen(blocks, f"{op.node.label} has a last block that is not full")
    else:
        yield Equal(a[-1], product_of((blocks, block)))
    yield Equal(product_of(scales.axes), product_of((columns, blocks)))
    if points is not None:
        yield from points_of(points, b, op)
    yield Stores("N", None, columns)
    yield Stores("K", None, a[-1])
    yield Quantized(b, scales, None, 1, bits)
    yield Contracted(a, a.rank - 1, by=(a, scales))
    product = AnyOf((Unsummed(a, (a.rank - 1,)), scales))
    if bias is not None:
        yield Equal(bias[0], columns)
    yield Zero(y, product if bias is None else AllOf((product, bias)))
    yield Macs((*y.axes, a[-1]))


def points_of(points: Tensor, b: Tensor, op: Op) -> Iterator[Fact]:
    """Zero points, one for each block, or those of blocks that follow each other in a byte: these stay together."""
    columns, blocks = b[0], b[1]
    each = math.prod(points.shape) // columns.size
    together = 1 if each == blocks.size else 8 // int(op.attribute("bits", 4))
    bytes_each, in_a_byte = free(each), free(together)
    yield from fixed((in_a_byte,), "zero points in a byte")
    yield Equal(product_of(points.axes), product_of((columns, bytes_each)))
    if each * together == blocks.size:
        yield Equal(blocks, product_of((bytes_each, in_a_byte)))
    else:
        yield Frozen(blocks, f"{op.node.label} packs several zero points into a byte, and the last is not full")
        yield from fixed((bytes_each,), "bytes")
