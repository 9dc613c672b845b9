"""
Operators that ONNX Runtime runs on other machines only: what their rules say of each axis, as text.

A letter is a Dim that may lose positions, a number one that may not; `2*a` is a product and `a+b` a sum.
"""

from __future__ import annotations

import re
import string

import pytest

from onnxprune.coupling.types import hear
from onnxprune.coupling.unification import Solver
from onnxprune.reading.graph import Node
from onnxprune.rules.axes import Axis, Dim, Product, Sum
from onnxprune.rules.operation import Op, Tensor
from onnxprune.rules.registry import facts_of

SAID = [
    ("BiasAdd(2 4 8, 8, 2 4 8) -> 2 4 8", "a b c, c, a b c -> a b c"),
    ("BiasSplitGelu(2 4 16, 16) -> 2 4 8", "a b 2*c, 2*c -> a b c"),
    ("BiasSoftmax<axis=2>(2 4 8, 1 4 8) -> 2 4 8", "a b 8, c b 8 -> a b 8"),
    ("BiasSoftmax<axis=1>(2 4 8, 4 8) -> 2 4 8", "2 4 8, 4 8 -> 2 4 8"),
    ("GemmFastGelu(2 4 6, 6 8, 8) -> 2 4 8", "a b c, c d, d -> a b d"),
    ("FusedMatMulActivation<transB=1>(4 6, 8 6) -> 4 8", "a b, c b -> a c"),
    ("NhwcConv(2 5 5 6, 8 6 3 3, 8) -> 2 5 5 8", "a 5 5 b, c b 3 3, c -> a 5 5 c"),
    ("NhwcConv<group=2>(2 5 5 6, 8 3 3 3) -> 2 5 5 8", "a 5 5 b*c, b*d c 3 3 -> a 5 5 b*d"),
    ("NhwcFusedConv(2 5 5 6, 8 6 1 1, 8, 2 5 5 8) -> 2 5 5 8", "a 5 5 b, c b 1 1, c, a 5 5 c -> a 5 5 c"),
    (
        "ConvTransposeWithDynamicPads<group=2>(2 6 5 5, 6 4 3 3, 4, 8) -> 2 8 7 7",
        "a b*c 5 5, b*c d 3 3, 4, b*d -> a b*d 7 7",
    ),
    ("NhwcMaxPool(2 6 6 8) -> 2 3 3 8", "a 6 6 b -> a 3 3 b"),
    ("MaxpoolWithMask(2 8 6 6, 2 8 6 6) -> 2 8 3 3", "a b 6 6, 2 8 6 6 -> a b 3 3"),
    ("GroupNorm<groups=2>(2 5 5 8, 8, 8) -> 2 5 5 8", "a 5 5 b*c, b*c, b*c -> a 5 5 b*c"),
    ("GroupNorm<groups=4, channels_last=0>(2 8 5 5, 8, 8) -> 2 8 5 5", "a b*c 5 5, b*c, b*c -> a b*c 5 5"),
    (
        "SkipGroupNorm<groups=2>(2 5 5 8, 8, 8, 2 5 5 8, 8) -> 2 5 5 8, 2 5 5 8",
        "a 5 5 b*c, b*c, b*c, a 5 5 b*c, b*c -> a 5 5 b*c, a 5 5 b*c",
    ),
    ("RelativePositionBias(32 6, 1, 1) -> 1 6 4 4", "32 a, b, c -> 1 a 4 4"),
    (
        "GatedRelativePositionBias<num_heads=3>(2 4 12, 12, 1 3 4 4, 4 8, 8, 1 3 1 1) -> 2 3 4 4",
        "a 4 b*4, b*4, c b 4 4, 4 8, 8, d b e f -> a b 4 4",
    ),
]


@pytest.mark.parametrize(("node", "expected"), SAID, ids=lambda text: text.partition("(")[0])
def test_what_is_said_of_each_axis(node: str, expected: str) -> None:
    """The axes of all inputs and outputs, once the equations are solved."""
    assert solved(node) == expected


def solved(text: str) -> str:
    """The node's axes, its inputs before the arrow."""
    found = re.fullmatch(r"(\w+)(?:<(.*)>)?\((.*)\) -> (.*)", text)
    assert found is not None
    attributes = {name: int(number) for name, number in re.findall(r"(\w+)=(-?\d+)", found[2] or "")}
    inputs, outputs = ([tensor(sizes) for sizes in found[side].split(", ")] for side in (3, 4))
    names = tuple(one.name for one in (*inputs, *outputs))
    node = Node("n", 0, "com.microsoft", found[1], names[: len(inputs)], names[len(inputs) :], attributes, ())
    solver = Solver()
    op = Op(node, tuple(inputs), tuple(outputs), 1)
    for fact in facts_of(op):
        hear(fact, op, solver)
    letters = iter(string.ascii_letters)
    known: dict[Dim, str] = {}

    def shown(axis: Axis) -> str:
        match solver.resolve(axis):
            case Dim() as dim:
                free = solver.frozen(dim) is None
                if dim not in known:
                    known[dim] = next(letters) if free else str(dim.size)
                return known[dim]
            case Sum(parts):
                return "+".join(shown(part) for part in parts)
            case Product(factors):
                return "*".join(shown(factor) for factor in factors)

    sides = (", ".join(" ".join(shown(axis) for axis in one.axes) for one in side) for side in (inputs, outputs))
    return " -> ".join(sides)


def tensor(sizes: str) -> Tensor:
    axes = tuple(Dim(int(size)) for size in sizes.split())
    return Tensor(f"t{id(axes)}", axes, own=len(axes) == 1)
