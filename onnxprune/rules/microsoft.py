"""Layers that ONNX Runtime makes one node of, with what stands behind them: `com.microsoft`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnxprune.rules.axes import product_of
from onnxprune.rules.facts import (
    AllOf,
    AnyOf,
    Condition,
    Contracted,
    Equal,
    Fact,
    Macs,
    MayAdd,
    Stores,
    Unsummed,
    Zero,
)
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import keeps_all, rule
from onnxprune.rules.vocabulary import broadcast, fixed, free, same_axes

MS = "com.microsoft"

keeps_all(
    *("AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReorderInput", "ReorderOutput"),
    "Upsample",
    domain="com.microsoft.nchwc",
    because="is blocked for one kind of machine; prune the model before it is optimised that far",
)
keeps_all("BifurcationDetector", "NGramRepeatBlock", domain=MS, because="compares words by number")
keeps_all("Tokenizer", "MurmurHash3", domain=MS, because="works on texts")
keeps_all("Range", domain=MS, because="makes numbers that tell positions apart")
keeps_all("BiasDropout", domain=MS, because="draws its random numbers position by position")
keeps_all("Irfft", "Rfft", domain=MS, because="runs over waves")

SILENT = frozenset({"Elu", "Gelu", "LeakyRelu", "Mish", "Relu", "Selu", "Softsign", "Swish", "SiLU", "Tanh", "silu"})
"""Activations of nodes that map zero to zero."""


def activation(op: Op) -> str:
    """The activation that is part of the node; empty where there is none."""
    name = str(op.attribute("activation", "") or op.attribute("activation_type", ""))
    return "" if name.lower() == "none" else name


def activated(op: Op, condition: Condition) -> Iterator[Fact]:
    """The output is zero where what goes into the activation is, if zero stays zero."""
    name = activation(op)
    if not name or name in SILENT or (name == "Clip" and holds_zero(op.attribute("activation_params") or ())):
        yield Zero(op.output(), condition)


def holds_zero(bounds: Sequence[float]) -> bool:
    """Are these the bounds of a range with 0 in it?"""
    return len(bounds) == 2 and bounds[0] <= 0 <= bounds[1]


@rule("FusedConv", domain=MS)
def fused_conv(op: Op) -> Iterator[Fact]:
    """As Conv, with something added to what it makes and an activation behind that."""
    yield from fused(op, channels=1, added=op.optional(3))


@rule("NhwcConv", "NhwcFusedConv", domain=MS)
def nhwc_conv(op: Op) -> Iterator[Fact]:
    """As Conv, with the channels of its input and output last."""
    yield from fused(op, channels=op.output().rank - 1, added=op.optional(3))


def fused(op: Op, *, channels: int, added: Tensor | None) -> Iterator[Fact]:
    """A convolution whose channels are axis number `channels` of input and output."""
    x, w, y, bias = op.input(0), op.input(1), op.output(), op.optional(2)
    groups = int(op.attribute("group", 1))
    group, each_out = free(groups), free(w[0].size // groups)
    space = [number for number in range(1, x.rank) if number != channels]
    yield Equal(x[0], y[0])
    yield Equal(x[channels], product_of((group, w[1])))
    yield Equal(w[0], product_of((group, each_out)))
    yield Equal(y[channels], product_of((group, each_out)))
    yield from fixed((tensor[number] for tensor in (x, y) for number in space), "spatial")
    yield from fixed(w[2:], "kernel")
    yield Contracted(x, channels, by=(x, w), affine=not activation(op))
    if groups > 1:
        yield Stores("group", None, group)
    terms: list[Condition] = [AnyOf((Unsummed(x, (channels,)), w))]
    if bias is not None:
        yield Equal(bias[0], y[channels])
        terms.append(bias)
    elif not activation(op):
        yield MayAdd(2, channels)
    if added is not None:
        yield from broadcast((added,), y)
        terms.append(added)
    yield from activated(op, AllOf(tuple(terms)))
    yield Macs((*y.axes, w[1], *w[2:]))


@rule("ConvTransposeWithDynamicPads", domain=MS)
def conv_transpose(op: Op) -> Iterator[Fact]:
    """As ConvTranspose, with paddings that are computed."""
    x, w, y, bias = op.input(0), op.input(1), op.output(), op.optional(3)
    groups = int(op.attribute("group", 1))
    group, each_in = free(groups), free(w[0].size // groups)
    yield Equal(x[0], y[0])
    yield Equal(x[1], product_of((group, each_in)))
    yield Equal(w[0], x[1])
    yield Equal(y[1], product_of((group, w[1])))
    yield from fixed((*x[2:], *y[2:], *w[2:], *op.input(2).axes), "spatial")
    yield Contracted(x, 1, by=(x, w))
    if groups > 1:
        yield Stores("group", None, group)
    if bias is not None:
        yield Equal(bias[0], y[1])
    yield Zero(y, w if bias is None else AllOf((w, bias)))
    yield Macs((*x.axes, w[1], *w[2:]))


@rule("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MS)
def fused_matmul(op: Op) -> Iterator[Fact]:
    """As MatMul, with either operand transposed and the product scaled, and an activation behind it."""
    a, b, y = op.input(0), op.input(1), op.output()
    if a.rank < 2 or b.rank < 2:
        raise NotUnderstood("an operand is a vector")
    left, right = order_of(op, a, "A"), order_of(op, b, "B")
    yield Equal(a[left[-1]], b[right[-2]])
    yield Equal(a[left[-2]], y[-2])
    yield Equal(b[right[-1]], y[-1])
    batches = (Tensor(tensor.name, tuple(tensor[n] for n in order[:-2])) for tensor, order in ((a, left), (b, right)))
    yield from broadcast(batches, Tensor(y.name, y[:-2]))
    yield Contracted(a, left[-1], by=(a, b), affine=not activation(op))
    yield from activated(op, AnyOf((Unsummed(a, (left[-1],)), Unsummed(b, (right[-2],)))))
    yield Macs((*y.axes, a[left[-1]]))


def order_of(op: Op, operand: Tensor, letter: str) -> list[int]:
    """The operand's axes as the product reads them: batches, rows, columns."""
    order = list(range(operand.rank))
    if op.attribute(f"transBatch{letter}", 0):
        order = [*order[1:-1], order[0], order[-1]]
    if op.attribute(f"trans{letter}", 0):
        order[-2:] = order[-1], order[-2]
    return order


@rule("FusedGemm", domain=MS)
def fused_gemm(op: Op) -> Iterator[Fact]:
    """As Gemm, with an activation behind it."""
    a, b, c, y = op.input(0), op.input(1), op.optional(2), op.output()
    a_row, a_inner = (1, 0) if op.attribute("transA", 0) else (0, 1)
    b_inner, b_column = (1, 0) if op.attribute("transB", 0) else (0, 1)
    yield Equal(a[a_row], y[0])
    yield Equal(b[b_column], y[1])
    yield Equal(a[a_inner], b[b_inner])
    yield Contracted(a, a_inner, by=(a, b), affine=not activation(op))
    product = AnyOf((Unsummed(a, (a_inner,)), Unsummed(b, (b_inner,))))
    if c is not None:
        yield from broadcast((c,), y)
    yield from activated(op, product if c is None else AllOf((product, c)))
    yield Macs((y[0], y[1], a[a_inner]))


@rule("GemmFastGelu", domain=MS)
def gemm_fast_gelu(op: Op) -> Iterator[Fact]:
    """A product of matrices with a bias and Gelu behind it."""
    x, w, bias, y = op.input(0), op.input(1), op.optional(2), op.output()
    yield from same_axes(Tensor(x.name, x[:-1]), Tensor(y.name, y[:-1]))
    yield Equal(x[-1], w[0])
    yield Equal(w[1], y[-1])
    yield Contracted(x, x.rank - 1, by=(x, w))
    product = AnyOf((Unsummed(x, (x.rank - 1,)), Unsummed(w, (0,))))
    if bias is not None:
        yield Equal(bias[0], y[-1])
    yield Zero(y, product if bias is None else AllOf((product, bias)))
    yield Macs((*y.axes, x[-1]))
