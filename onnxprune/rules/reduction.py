"""Reductions."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.facts import Averaged, Contracted, Divisor, Equal, Fact, Frozen, Unsummed, Zero
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import same_axes

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")


@rule(*SUMS)
def reduce_sum(op: Op) -> Iterator[Fact]:
    """A sum to which zeros add nothing: a sink."""
    x, y = op.input(0), op.output()
    for number in reduced(op, x):
        yield Contracted(x, number, by=(x,))
    yield from kept_axes(op, x, y)
    yield Zero(y, x)


@rule("ReduceMean", "GlobalAveragePool")
def reduce_mean(op: Op) -> Iterator[Fact]:
    """A mean, which depends on how many positions there are; a pool may run over channels that stand last."""
    x, y = op.input(0), op.output()
    for number in reduced(op, x):
        yield Averaged(x, number)
    yield from kept_axes(op, x, y)
    yield Zero(y, x)


@rule("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin")
def reduce_other(op: Op) -> Iterator[Fact]:
    """A zero would count."""
    x, y = op.input(0), op.output()
    for number in reduced(op, x):
        yield Frozen(x[number], f"{op.node.label} runs over it")
    yield from kept_axes(op, x, y)
    if op.node.op_type in ("ReduceMax", "ReduceMin"):
        yield Zero(y, x)
    if op.node.op_type == "ReduceLogSum":
        yield Divisor(x)


@rule("CumSum")
def running_sum(op: Op) -> Iterator[Fact]:
    """Sums of all positions before each: a sink whose axis goes on."""
    x, y, along = op.input(0), op.output(), run_over(op)
    yield from same_axes(x, y)
    yield Contracted(x, along, by=(x,))
    yield Zero(y, Unsummed(x, (along,)))


@rule("CumProd")
def running_product(op: Op) -> Iterator[Fact]:
    """Products of all positions before each, which a zero would end."""
    x, y, along = op.input(0), op.output(), run_over(op)
    yield from same_axes(x, y)
    yield Frozen(x[along], f"{op.node.label} runs over it")
    if not op.attribute("exclusive", 0):
        yield Zero(y, x)


def run_over(op: Op) -> int:
    """The axis, which is an input."""
    axes = op.numbers("axis", 1)
    if not axes:
        raise NotUnderstood("its axis is missing")
    return axes[0] % op.input(0).rank


def reduced(op: Op, x: Tensor) -> tuple[int, ...]:
    """The axes that are reduced."""
    if op.node.op_type.startswith("Arg"):
        return (op.axis(x),)
    if op.node.op_type == "GlobalAveragePool":
        return tuple(range(2, x.rank))
    axes = op.numbers("axes", 1)
    if not axes:
        return () if op.attribute("noop_with_empty_axes", 0) else tuple(range(x.rank))
    return tuple(sorted(axis % x.rank for axis in axes))


def kept_axes(op: Op, x: Tensor, y: Tensor) -> Iterator[Fact]:
    """The axes that are left are those of the input."""
    gone = reduced(op, x)
    left = [number for number in range(x.rank) if number not in gone]
    places = left if op.attribute("keepdims", 1) else range(len(left))
    for number, place in zip(left, places, strict=True):
        yield Equal(x[number], y[place])
