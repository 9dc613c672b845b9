"""Matrix products and contractions."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.axes import Axis
from onnxprune.rules.facts import AllOf, AnyOf, Contracted, Equal, Fact, Macs, MayAdd, Unsummed, Zero
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import broadcast


@rule("MatMul")
def matmul(op: Op) -> Iterator[Fact]:
    """Rows by columns over the shared inner axis; leading axes broadcast; a vector has no row or column axis."""
    a, b, y = op.input(0), op.input(1), op.output()
    if a.rank == 0 or b.rank == 0:
        raise NotUnderstood("an operand is a scalar")
    inner = -2 if b.rank > 1 else -1
    yield Equal(a[-1], b[inner])
    if a.rank > 1 and b.rank > 1:
        yield Equal(a[-2], y[-2])
        yield Equal(b[-1], y[-1])
        yield from broadcast((leading(a, 2), leading(b, 2)), leading(y, 2))
    elif a.rank > 1:
        yield from broadcast((leading(a, 1),), y)
    elif b.rank > 1:
        yield Equal(b[-1], y[-1])
        yield from broadcast((leading(b, 2),), leading(y, 1))
    yield Contracted(a, a.rank - 1, by=(a, b), affine=True)
    yield Zero(y, AnyOf((Unsummed(a, (a.rank - 1,)), Unsummed(b, (b.rank + inner,)))))
    yield Macs((*y.axes, a[-1]))


def leading(tensor: Tensor, dropped: int) -> Tensor:
    """The tensor without its last `dropped` axes."""
    return Tensor(tensor.name, tensor.axes[: tensor.rank - dropped])


@rule("Gemm")
def gemm(op: Op) -> Iterator[Fact]:
    """y [m, n] = a [m, k] times b [k, n], either transposed, plus c, which broadcasts."""
    a, b, c, y = op.input(0), op.input(1), op.optional(2), op.output()
    a_row, a_inner = (1, 0) if op.attribute("transA", 0) else (0, 1)
    b_inner, b_column = (1, 0) if op.attribute("transB", 0) else (0, 1)
    yield Equal(a[a_row], y[0])
    yield Equal(b[b_column], y[1])
    yield Equal(a[a_inner], b[b_inner])
    yield Contracted(a, a_inner, by=(a, b), affine=True)
    yield Macs((y[0], y[1], a[a_inner]))
    product = AnyOf((Unsummed(a, (a_inner,)), Unsummed(b, (b_inner,))))
    if c is None:
        if op.attribute("beta", 1.0) == 1:
            yield MayAdd(2, 1)
        yield Zero(y, product)
    else:
        yield from broadcast((c,), y)
        yield Zero(y, AllOf((product, c)))


@rule("Einsum")
def einsum(op: Op) -> Iterator[Fact]:
    """Axes of one letter are equal; a letter missing from the output is summed over, one of one position broadcasts."""
    operands, y = op.tensors, op.output()
    letters_of, result = letters(str(op.attribute("equation")), operands, y)
    places = [
        (operand, number, name)
        for names, operand in zip(letters_of, operands, strict=True)
        for number, name in enumerate(names)
    ]
    common: dict[str, Axis] = dict(zip(result, y.axes, strict=True))
    for operand, number, name in sorted(places, key=lambda place: -place[0][place[1]].size):
        common.setdefault(name, operand[number])
    for operand, number, name in places:
        if name not in result:
            yield Contracted(operand, number, by=operands, affine=len(operands) == 2)
        if operand[number].size == common[name].size:
            yield Equal(common[name], operand[number])
        elif operand[number].size != 1:
            raise NotUnderstood(f"index {name!r} has {operand[number].size} and {common[name].size} positions")
    yield Zero(y, AnyOf(tuple(Unsummed(*part) for part in zip(operands, summed(letters_of, result), strict=True))))
    if len(operands) > 1:
        yield Macs(tuple(common.values()))


def summed(letters_of: list[list[str]], result: list[str]) -> list[tuple[int, ...]]:
    """For each operand, the numbers of its axes that the output does not have."""
    return [tuple(number for number, name in enumerate(names) if name not in result) for names in letters_of]


def letters(equation: str, operands: tuple[Tensor, ...], y: Tensor) -> tuple[list[list[str]], list[str]]:
    """The index names of each operand's axes and of the output's; those of an ellipsis are "0", "1" from the right."""
    left, _, right = equation.replace(" ", "").partition("->")
    sides = [spelled(side, operand.rank) for side, operand in zip(left.split(","), operands, strict=True)]
    if "->" in equation:
        return sides, spelled(right, y.rank)
    every = [name for side in sides for name in side]
    dots = sorted({name for name in every if name.isdigit()}, key=int, reverse=True)
    return sides, dots + sorted(name for name in set(every) if every.count(name) == 1 and not name.isdigit())


def spelled(side: str, rank: int) -> list[str]:
    """One name per axis."""
    before, dots, after = side.partition("...")
    extra = rank - len(before) - len(after)
    if extra < 0 or (extra and not dots):
        raise NotUnderstood(f"{side!r} does not fit {rank} axes")
    return [*before, *(str(number) for number in range(extra - 1, -1, -1)), *after]
