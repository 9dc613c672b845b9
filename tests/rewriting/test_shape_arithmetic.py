"""Shapes computed in every way that exporters know."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.models import build
from tests.oracle import assert_removal_equals_zeroing

SHAPE = {"N": None, "C": 8, "H": 4, "W": 6}
"""The tensor whose shape is computed with: N is dynamic, C can be pruned."""

TARGETS = [
    (("N",), ("C", "H", "W")),
    (("N", "C"), ("H", "W")),
    (("N",), ("C",), ("H", "W")),
    (("N", "C"), ("H",), ("W",)),
    (("N",), (2,), ("C/2",), ("H", "W")),
    (("N", 2), ("C/2",), ("H", "W")),
    (("N", 2), ("C/2", "H"), ("W",)),
]
"""Shapes of the same numbers, each size a product."""


@dataclass
class Arithmetic:
    """Lines that compute sizes of the tensor `a`."""

    draw: st.DrawFn
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def say(self, call: str) -> str:
        self.count += 1
        self.lines.append(f"t{self.count} = {call}")
        return f"t{self.count}"

    def number(self, value: int) -> str:
        self.count += 1
        return f"s{self.count}{{{value}}}"

    def either(self, *options: object) -> object:
        return self.draw(st.sampled_from(options))

    def measured(self, letter: str) -> str:
        """One size out of the shape, as a vector of one."""
        at = "NCHW".index(letter)
        way = self.either("slice", "gather", "gather", "shape", "int32")
        if way == "shape":
            return self.say(f"Shape<start={at}, end={at + 1}>(a)")
        whole = self.say("Shape(a)")
        if way == "slice":
            return self.say(f"Slice({whole}, {self.number(at)}, {self.number(at + 1)})")
        if way == "int32":
            narrow = self.say(f"Cast<to=6>({whole})")
            return self.say(f"Cast<to=7>({self.say(f'Gather({narrow}, {self.number(at)})')})")
        self.count += 1
        single = self.say(f"Gather({whole}, i{self.count}[]{{{at}}})")
        return self.say(f"Unsqueeze({single}, {self.number(0)})")

    def factor(self, size: object) -> str:
        """A number, a measured size, or half of one."""
        if isinstance(size, int):
            return self.number(size)
        if size == "C/2":
            if self.either(True, False):
                return self.number(4)
            return self.say(f"Div({self.measured('C')}, {self.number(2)})")
        known = SHAPE[str(size)]
        return self.number(known) if known and self.either(True, False) else self.measured(str(size))

    def product(self, sizes: tuple[object, ...]) -> str:
        """The sizes multiplied, in any order, or all stored as one number where none is dynamic."""
        if "N" not in sizes and self.either(True, False, False):
            return self.number(prod(4 if size == "C/2" else SHAPE.get(size, size) for size in sizes))
        ordered = self.draw(st.permutations(sizes))
        result = self.factor(ordered[0])
        for size in ordered[1:]:
            pair = [result, self.factor(size)]
            result = self.say(f"Mul({', '.join(self.draw(st.permutations(pair)))})")
        return self.say(f"Identity({result})") if self.either(True, False, False) else result

    def shape(self, target: tuple[tuple[object, ...], ...]) -> str:
        """All sizes in one vector, one of them perhaps left open."""
        left_open = self.draw(st.integers(0, 2 * len(target)))
        parts = [self.number(-1) if place == left_open else self.product(sizes) for place, sizes in enumerate(target)]
        return self.say(f"Concat<axis=0>({', '.join(parts)})")


@st.composite
def networks(draw: st.DrawFn) -> str:
    """A Conv whose channels go through two Reshapes on the way to the output."""
    arithmetic = Arithmetic(draw)
    first = arithmetic.shape(draw(st.sampled_from(TARGETS)))
    lines = ["a = Conv(x[N,3,4,6], w1[8,3,1,1], b1[8])"]
    there = arithmetic.say(f"Reshape(a, {first})")
    moved = arithmetic.say(f"Tanh({there})")
    back = arithmetic.shape((("N",), ("C", "H", "W")) if draw(st.booleans()) else (("N",), ("C",), ("H",), ("W",)))
    flat = arithmetic.say(f"Flatten({arithmetic.say(f'Reshape({moved}, {back})')})")
    return "\n".join([*lines, *arithmetic.lines, f"y = MatMul({flat}, w2[192,3])"])


@given(networks(), st.integers(0, 99))
@settings(max_examples=100)
def test_however_a_shape_is_computed_it_comes_out_right(text: str, seed: int) -> None:
    """Numbers that were stored and numbers that are measured agree after pruning, at every batch size."""
    note(text)
    assert_removal_equals_zeroing(build(text), seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_expand_as_pytorch_writes_it(seed: int) -> None:
    """Minus one means "as it is": a Where over Equal and ConstantOfShape picks the sizes."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        m = GlobalAveragePool(a)
        wanted = Constant<value_ints=[-1,8,4,4]>()
        length = Constant<value_ints=[4]>()
        ones = ConstantOfShape<value: tensor = int64[1] {1}>(length)
        minus = Mul(ones, by[]{-1})
        open = Equal(wanted, minus)
        shape = Where(open, ones, wanted)
        e = Expand(m, shape)
        b = Add(a, e)
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8}, seed=seed)


def test_a_shape_through_identity_and_cast() -> None:
    """Chains of nodes that copy are followed to the constant."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        s1 = Identity(s{0,2,64})
        s2 = Cast<to=6>(s1)
        s3 = Cast<to=7>(s2)
        b = Reshape(a, s3)
        c = Reshape(b, t{0,128})
        y = MatMul(c, w2[128,3])
    """)
    assert_removal_equals_zeroing(model, groups=[2, 4])


def test_a_size_that_is_used_as_a_number_keeps_its_value() -> None:
    """Where the same measured width is a size for one reader and a number for another, each gets its own."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        all = Shape(a)
        c = Slice(all, one{1}, two{2})
        n = Slice(all, zero{0}, one)
        rest = Mul(c, sixteen{16})
        shape = Concat<axis=0>(n, rest)
        flat = Reshape(a, shape)
        count = Cast<to=1>(c)
        scaled = Div(flat, count)
        y = MatMul(scaled, w2[128,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_a_computed_kernel_size_keeps_its_value() -> None:
    """Steps of a Range, lengths and bounds that come from channels stay what they were."""
    model = build("""
        a = MatMul(x[N,4], w1[4,8])
        all = Shape(a)
        c = Gather(all, one[]{1})
        ids = Range(zero[]{0}, c, step[]{1})
        numbers = Cast<to=1>(ids)
        total = ReduceSum(numbers, axis{0})
        b = Mul(a, total)
        y = MatMul(b, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})
