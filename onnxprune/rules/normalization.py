"""Normalizations and softmax."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.axes import product_of
from onnxprune.rules.facts import (
    AllOf,
    Contracted,
    Divisor,
    Equal,
    Fact,
    Frozen,
    Normalized,
    Pointwise,
    Standardized,
    Stores,
    Zero,
)
from onnxprune.rules.operation import NotUnderstood, Op
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import broadcast, fixed, free, same_axes

LEAST_DEVIATION = 1e-9
"""What MeanVarianceNormalization adds to a deviation before it divides."""


@rule("BatchNormalization")
def batch_norm(op: Op) -> Iterator[Fact]:
    """Each channel by itself, by stored statistics; the variance divides."""
    if op.attribute("training_mode", 0) or len(op.results) > 1:
        raise NotUnderstood("it is in training mode")
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    for index in range(1, 5):
        yield Equal(op.input(index)[0], y[1])
    yield Divisor(op.input(4))
    yield Pointwise()
    yield Standardized(0, 1, 2, 3, 4, float(op.attribute("epsilon", 1e-5)))
    yield Zero(y, AllOf((op.input(1), op.input(2))))


@rule("InstanceNormalization")
def instance_norm(op: Op) -> Iterator[Fact]:
    """Each channel by itself, over its own space."""
    x, scale, bias, y = op.input(0), op.input(1), op.input(2), op.output()
    yield from same_axes(x, y)
    yield Equal(scale[0], y[1])
    yield Equal(bias[0], y[1])
    yield Normalized((0,), tuple(range(2, x.rank)), 1, 2, epsilon_of(op), within=free(1))
    yield Zero(y, AllOf((scale, bias)))


@rule("GroupNormalization")
def group_norm(op: Op) -> Iterator[Fact]:
    """Whole groups may go; a channel inside a group is part of the group's mean."""
    x, scale, bias, y = op.input(0), op.input(1), op.input(2), op.output()
    groups = int(op.attribute("num_groups"))
    group, each = free(groups), free(x[1].size // groups)
    yield from same_axes(x, y)
    yield Equal(y[1], product_of((group, each)))
    yield from fixed(x[2:], "spatial")
    per_channel = scale[0].size == x[1].size
    for factor in (scale, bias):
        yield Equal(factor[0], y[1] if per_channel else group)
    yield Normalized((0,), tuple(range(2, x.rank)), 1, 2, epsilon_of(op), within=each)
    yield Stores("num_groups", None, group)
    yield Zero(y, AllOf((scale, bias)))


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(op: Op) -> Iterator[Fact]:
    """A mean (of the numbers, of their squares) over every axis from `axis` on."""
    x, scale, bias, y = op.input(0), op.input(1), op.optional(2), op.output()
    start = op.axis(x, default=-1)
    yield from same_axes(x, y)
    centred = op.node.op_type == "LayerNormalization"
    yield Normalized((0,), tuple(range(start, x.rank)), 1, None if bias is None else 2, epsilon_of(op), centred)
    for factor in (scale, bias):
        if factor is not None:
            yield from broadcast((factor,), y)
    for statistic in op.results[1:]:
        yield from same_axes(x, statistic, except_=range(start, x.rank))
    yield Zero(y, scale if bias is None else AllOf((scale, bias)))


@rule("MeanVarianceNormalization")
def mean_variance(op: Op) -> Iterator[Fact]:
    """A mean over some axes (batch and space, unless it says otherwise), divided by a deviation that zeros have not."""
    x, y = op.input(0), op.output()
    over = tuple(int(axis) % x.rank for axis in op.attribute("axes") or (0, 2, 3))
    yield from same_axes(x, y)
    yield Normalized((0,), over, None, None, LEAST_DEVIATION**2)
    yield Divisor(x)


def epsilon_of(op: Op) -> float:
    """What is added to a variance before its root is taken."""
    return float(op.attribute("epsilon", 1e-5))


@rule("LpNormalization")
def lp_norm(op: Op) -> Iterator[Fact]:
    """Divided by the norm over one axis, to which zeros add nothing."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    yield Contracted(x, op.axis(x, default=-1), by=(x,))
    yield Zero(y, x)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: Op) -> Iterator[Fact]:
    """Shares that add up to one over `axis`; before opset 13 over all axes from it on."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    start = op.axis(x, default=-1 if op.opset >= 13 else 1)
    for axis in x[start:] if op.opset < 13 else (x[start],):
        yield Frozen(axis, f"{op.node.label} shares one out over it")
