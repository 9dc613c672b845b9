"""Operators that work position by position, with broadcasting."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.facts import AllOf, AnyOf, Divisor, Fact, Pointwise, Zero
from onnxprune.rules.operation import NotUnderstood, Op
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import broadcast, copied_in_order, same_axes


@rule(
    *("Abs", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Erf", "Floor", "IsNaN", "Neg", "Round", "Sign", "Sin", "Sinh"),
    *("Sqrt", "Tan", "Tanh", "Softsign", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "HardSwish"),
    *("Swish", "Identity", "Dropout", "Cast", "BitCast", "ThresholdedRelu", "Shrink", "IsInf"),
)
def keeps_zero(op: Op) -> Iterator[Fact]:
    """One input, and f(0) = 0. A second output (a dropout mask) has the same axes."""
    yield Pointwise()
    refuse_training(op)
    if float(op.attribute("lambd", 0.5)) < 0:
        raise NotUnderstood("its threshold is negative")
    x = op.input(0)
    for y in op.results:
        yield from same_axes(x, y)
    yield Zero(op.output(), x, moved=op.node.op_type == "Identity")
    if op.node.op_type in ("Identity", "Cast"):
        yield from copied_in_order(op)


def refuse_training(op: Op) -> None:
    """Random numbers are drawn position by position: with fewer positions, others would be drawn."""
    training = op.optional(2) if op.node.op_type == "Dropout" else None
    if training is not None and (training.value is None or training.value.any()):
        raise NotUnderstood("it is in training mode")


@rule("Acos", "BitwiseNot", "Cos", "Cosh", "Exp", "HardSigmoid", "Not", "Sigmoid", "Softplus")
def moves_zero(op: Op) -> Iterator[Fact]:
    """One input, and f(0) is something else."""
    yield Pointwise()
    yield from same_axes(op.input(0), op.output())


@rule("Acosh", "Log", "Reciprocal")
def no_value_at_zero(op: Op) -> Iterator[Fact]:
    """One input, and f(0) is infinite or no number."""
    yield Pointwise()
    yield from same_axes(op.input(0), op.output())
    yield Divisor(op.input(0))


@rule("CastLike")
def cast_like(op: Op) -> Iterator[Fact]:
    """The first input, in the type of the second."""
    yield Pointwise()
    yield from same_axes(op.input(0), op.output())
    yield Zero(op.output(), op.input(0))


@rule("Clip")
def clip(op: Op) -> Iterator[Fact]:
    """Zero stays zero when it lies between the bounds."""
    yield Pointwise()
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    low, high = bound(op, "min", 1), bound(op, "max", 2)
    if low is not None and high is not None and low <= 0 <= high:
        yield Zero(y, x)


def bound(op: Op, name: str, index: int) -> float | None:
    """A bound of Clip: unlimited (0) when absent, None when it is computed."""
    if name in op.node.attributes:
        return float(op.attribute(name))
    tensor = op.optional(index)
    if tensor is None:
        return 0.0
    return None if tensor.value is None or tensor.value.size != 1 else float(tensor.value.reshape(()))


@rule("Add", "Sub", "Max", "Min", "Sum", "Mean", "Or", "Xor", "BitwiseOr", "BitwiseXor")
def zero_where_all_are(op: Op) -> Iterator[Fact]:
    """f(0, 0) = 0."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())
    yield Zero(op.output(), AllOf(op.tensors))


@rule("Mul", "And", "BitwiseAnd", "SwiGLU")
def zero_where_any_is(op: Op) -> Iterator[Fact]:
    """f(0, x) = f(x, 0) = 0."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())
    yield Zero(op.output(), AnyOf(op.tensors))


@rule("Div")
def divide(op: Op) -> Iterator[Fact]:
    """Zero where the numerator is; the denominator is never zeroed."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())
    yield Zero(op.output(), op.input(0))
    yield Divisor(op.input(1))


@rule("BitShift", "PRelu")
def zero_where_the_first_is(op: Op) -> Iterator[Fact]:
    """f(0, x) = 0."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())
    yield Zero(op.output(), op.input(0))


@rule("Pow")
def power(op: Op) -> Iterator[Fact]:
    """Zero where the base is, for a known positive exponent, which is never zeroed."""
    yield Pointwise()
    base, exponent = op.input(0), op.input(1)
    yield from broadcast(op.tensors, op.output())
    yield Divisor(exponent)
    if exponent.value is not None and bool((exponent.value > 0).all()):
        yield Zero(op.output(), base)
    else:
        yield Divisor(base)


@rule("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
def compare(op: Op) -> Iterator[Fact]:
    """A truth per position; where both are zero it may be true."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())


@rule("Mod")
def modulo(op: Op) -> Iterator[Fact]:
    """Zero where the dividend is; the divisor is never zeroed."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())
    yield Zero(op.output(), op.input(0))
    yield Divisor(op.input(1))


@rule("Where")
def where(op: Op) -> Iterator[Fact]:
    """One or the other, so zero where both are."""
    yield Pointwise()
    yield from broadcast(op.tensors, op.output())
    yield Zero(op.output(), AllOf((op.input(1), op.input(2))))
