"""Operators that move, cut, join or repeat, without arithmetic."""

from __future__ import annotations

import pytest

from tests.models import OPSETS, build, definitions, since
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, reasons

LARGEST = 2**63 - 1


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int, opset: int) -> None:
    """Laid end to end, each part can be pruned by itself; along another axis, all parts are one group."""
    reader = {0: "MatMul(c, w3[8,3])", 1: "Transpose(c)", -1: "MatMul(c, w3[16,3])"}[axis]
    model = build(
        f"""
        a = MatMul(x[4,5], w1[5,8])
        b = MatMul(x, w2[5,8])
        c = Concat<axis={axis}>(a, b)
        d = {reader}
        y = {"MatMul(w3[3,16], d)" if axis == 1 else "Identity(d)"}
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8} if axis == 0 else {"a": 8, "b": 8})


def test_concat_of_channels_with_themselves() -> None:
    """Both halves are the same channels."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Neg(a)
        c = Concat<axis=1>(a, b, a)
        y = Conv(c, w2[4,24,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_concat_with_the_input_keeps_the_input() -> None:
    """Channels of the model's input stay, wherever they stand."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        c = Concat<axis=1>(x, a, x2[N,2,4,4])
        y = Conv(c, w2[4,13,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_zeros_of_a_concat_are_those_of_its_parts() -> None:
    """Of two parts, only the one that is not zero any more is inexact under a product of activations."""
    model = build("""
        a = MatMul(x[5,4], w1[4,8])
        b = MatMul(x, w2[4,6])
        c = Sigmoid(b)
        d = Concat<axis=1>(a, c)
        t = Transpose(d)
        y = MatMul(d, t)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8}, inexact={"b": 6})
    assert_inexact(model, {"b": 6})


SPLITS = [
    *(("b, c = Split<axis=1, split=[5,3]>(a)", opset, {"a:1": 5, "a:2": 3}) for opset in (9, 11)),
    *(("b, c = Split<axis=1>(a, s{5,3})", opset, {"a:1": 5, "a:2": 3}) for opset in since(13)),
    *(("b, c = Split<axis=-3>(a, s{4,4})", opset, {"a:1": 4, "a:2": 4}) for opset in since(13)),
    *(("b, c = Split<axis=1>(a)", opset, {"a:1": 4, "a:2": 4}) for opset in (9, 11, 13, 17)),
    *(("b, c = Split<axis=1, num_outputs=2>(a)", opset, {"a:1": 4, "a:2": 4}) for opset in since(18)),
]


@pytest.mark.parametrize(("split", "opset", "sizes"), SPLITS)
def test_split(split: str, opset: int, sizes: dict[str, int]) -> None:
    """Each part is a group of its own, and the sizes are written down once they differ."""
    first, second = sizes.values()
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        {split}
        d = Conv(b, w2[4,{first},1,1])
        e = Conv(c, w3[4,{second},1,1])
        y = Add(d, e)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups=sizes)


def test_split_in_parts_that_are_not_equal_by_number() -> None:
    """`num_outputs` that does not divide leaves a smaller last part."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b, c, d = Split<axis=1, num_outputs=3>(a)
        e = Concat<axis=1>(d, c, b)
        y = Conv(e, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups=[3, 3, 2])


def test_split_of_which_one_part_is_not_used() -> None:
    """A part that nobody reads may lose all of its channels but one."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b, c = Split<axis=1>(a, s{5,3})
        y = Conv(b, w2[4,5,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a:1": 5, "a:2": 3})


@pytest.mark.parametrize(
    ("cut", "opset"),
    [
        ("Slice<axes=[1], starts=[2], ends=[6]>(a)", 9),
        ("Slice<axes=[1], starts=[-6], ends=[-2]>(a)", 9),
        ("Slice<starts=[0,2], ends=[9,6]>(a)", 9),
        *(("Slice(a, s{2}, e{6}, axes{1}, steps{1})", opset) for opset in since(11)),
        *(("Slice(a, s{-6}, e{-2}, axes{-3})", opset) for opset in since(11)),
        ("Slice(a, int32 s{2}, int32 e{6}, int32 axes{1})", 13),
        ("Slice(a, int32 s{2}, int32 e{6}, int32 axes{1}, int32 steps{1})", 13),
        ("Slice(a, s{0,2}, e{100,6})", 13),
        ("Slice(a, s{2}, e{-2}, axes{1})", 13),
    ],
)
def test_slice_of_channels(cut: str, opset: int) -> None:
    """What is before, in and behind the cut are three groups; bounds follow from whichever end they count."""
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = {cut}
        c = Conv(b, w2[4,4,1,1])
        d = Conv(a, w3[4,8,1,1])
        y = Add(c, d)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups=[2, 4, 2])


@pytest.mark.parametrize("end", [LARGEST, 8, 2147483647])
@pytest.mark.parametrize("start", [5, -3])
def test_slice_to_the_end(start: int, end: int) -> None:
    """An end beyond the last position stays there."""
    model = build(f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Slice(a, s{{{start}}}, e{{{end}}}, axes{{1}})
        c = Conv(b, w2[4,3,1,1])
        d = Conv(a, w3[4,8,1,1])
        y = Add(c, d)
    """)
    assert_removal_equals_zeroing(model, groups=[5, 3])


@pytest.mark.parametrize("bounds", [(0, 5), (-8, -3), (0, -3), (-100, 5)])
def test_slice_from_the_start(bounds: tuple[int, int]) -> None:
    """A start at or before the first position stays there."""
    model = build(f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Slice(a, s{{{bounds[0]}}}, e{{{bounds[1]}}}, axes{{1}})
        c = Conv(b, w2[4,5,1,1])
        d = Conv(a, w3[4,8,1,1])
        y = Add(c, d)
    """)
    assert_removal_equals_zeroing(model, groups=[5, 3])


SELECTIONS = [
    (8, (0, LARGEST, 2), [4]),
    (8, (1, 8, 2), [4]),
    (9, (2, LARGEST, 3), [3]),
    (8, (0, 6, 2), [3, 5]),
    (8, (0, 7, 3), [3, 5]),
    (8, (-1, -LARGEST, -1), [8]),
    (8, (5, 1, -2), [2, 6]),
    (8, (3, -LARGEST, -1), [4, 4]),
]


@pytest.mark.parametrize(("size", "bounds", "sizes"), SELECTIONS)
def test_slice_with_a_step(size: int, bounds: tuple[int, int, int], sizes: list[int]) -> None:
    """Every so many positions, or backwards: what stays is selected by number; those between two go with them."""
    start, end, step = bounds
    count = len(range(size)[start:end:step])
    model = build(f"""
        a = Conv(x[N,3,4,4], w1[{size},3,1,1])
        b = Slice(a, first{{{start}}}, last{{{end}}}, axes{{1}}, steps{{{step}}})
        d = Conv(b, w2[4,{count},1,1])
        e = Conv(a, w3[4,{size},1,1])
        y = Add(d, e)
    """)
    assert_removal_equals_zeroing(model, groups=sizes)


def test_both_halves_of_interleaved_pairs() -> None:
    """A rotation of neighbours, as rotary embeddings have it, keeps pairs together."""
    model = build("""
        a = MatMul(x[N,5], w1[5,8])
        even = Slice(a, s{0}, e{9223372036854775807}, axes{1}, steps{2})
        odd = Slice(a, s1{1}, e, axes1{1}, steps1{2})
        turned = Neg(odd)
        both = Concat<axis=1>(turned, even)
        y = MatMul(both, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups=[4])


def test_slice_of_several_axes_with_a_step_freezes() -> None:
    """Only a node that does nothing else can select by number instead."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Slice(a, s{0,1}, e{9223372036854775807,3}, axes{1,2}, steps{2,1})
        y = Conv(b, w2[4,4,1,1])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "Slice takes every 2th position of it" in reasons(couplings)


@pytest.mark.parametrize(
    ("pad", "opset"),
    [
        ("Pad<pads=[0,2,1,1,0,3,1,1]>(a)", 9),
        ('Pad<mode="constant", pads=[0,2,0,0,0,3,0,0], value=0.0>(a)', 9),
        *(("Pad(a, pads{0,2,1,1,0,3,1,1})", opset) for opset in since(11)),
        ("Pad(a, pads{0,2,1,1,0,3,1,1}, zero[]{0.0})", 13),
        *(("Pad(a, pads{2,3}, , axes{1})", opset) for opset in since(18)),
        ("Pad(a, pads{1,2,1,3}, , axes{-1,-3})", 18),
        ("Pad(a, pads{1,2,1,3}, zero[]{0.0}, axes{2,1})", 18),
    ],
)
def test_pad_of_channels(pad: str, opset: int) -> None:
    """Zeros before and after the channels are groups of their own: `p + C + p`."""
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1], b1[8])
        b = {pad}
        y = Conv(b, w2[4,13,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups=[2, 8, 3])


@pytest.mark.parametrize(
    ("pad", "opset"),
    [
        ('Pad<mode="reflect", pads=[0,0,1,1,0,0,1,1]>(a)', 9),
        ('Pad<mode="edge">(a, pads{0,0,1,1,0,0,1,1})', 13),
        ('Pad<mode="wrap">(a, pads{1,1,1,1}, , axes{2,3})', 19),
        ("Pad(a, pads{0,0,1,1,0,0,1,1}, one[]{1.0})", 13),
        ("Pad(a, pads{0,0,-1,-1,0,0,-1,-1})", 13),
    ],
)
def test_pad_of_space(pad: str, opset: int) -> None:
    """Whatever space is padded with, channels are free."""
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1], b1[8])
        b = {pad}
        y = Conv(b, w2[4,8,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("pad", ['Pad<mode="reflect">(a, pads{0,2,0,0,0,2,0,0})', "Pad(a, pads{0,-2,0,0,0,0,0,0})"])
def test_pad_that_copies_or_crops_channels_freezes(pad: str) -> None:
    """Channels that are repeated or cut off by number stay."""
    model = build(f"a = Conv(x[N,3,4,4], w1[8,3,1,1])\n y = {pad}")
    assert_removal_equals_zeroing(
        build(f"a = Conv(x[N,3,4,4], w1[8,3,1,1])\n b = {pad}\n y = ReduceSum(b, s{{1}})"), groups={}
    )
    assert_removal_equals_zeroing(model, groups={})


@pytest.mark.parametrize("opset", definitions("Gather"))
def test_gather_of_an_embedding(opset: int) -> None:
    """The width of an embedding is a group, its words stay."""
    model = build(
        """
        a = Gather(table[11,8], int64 x[N,5])
        y = MatMul(a, w1[8,3])
        """,
        opset=opset,
    )
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8})
    assert "Gather looks positions up by number" in reasons(couplings)


@pytest.mark.parametrize("index", ["i[]{1}", "i{1}", "int32 i[]{1}", "i[]{-1}"])
def test_gather_of_one_of_three(index: str) -> None:
    """One of three packed projections: what is packed is free, the three stay."""
    rest = "b" if "[]" in index else "b0"
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,24])
        p = Reshape(a, s{{0,0,3,8}})
        {rest} = Gather<axis=2>(p, {index})
        {"" if rest == "b" else "b = Squeeze(b0, two{2})"}
        q = Gather<axis=2>(p, zero[]{{0}})
        c = Mul(b, q)
        y = MatMul(c, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(
    ("shape", "opset"),
    [
        *(("s{0,-1}", opset) for opset in OPSETS),
        ("s{-1,128}", 13),
        ("s{0,128}", 13),
        ("s[2]{0,-1}", 13),
    ],
)
def test_reshape_to_a_vector(shape: str, opset: int) -> None:
    """Each channel takes its block of positions along; 0 and -1 stay, a number follows."""
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Reshape(a, {shape})
        y = MatMul(b, w2[128,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_reshape_with_a_constant_node() -> None:
    """The shape may be held by a Constant node."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        s = Constant<value_ints=[-1,2,64]>()
        b = Reshape(a, s)
        y = MatMul(b, w2[64,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 4})


def test_reshape_with_allowzero() -> None:
    """With `allowzero` and no zero in it, the shape follows as usual."""
    model = build("""
        a = Conv(x[2,3,4,4], w1[8,3,1,1])
        b = Reshape<allowzero=1>(a, s{2,128})
        y = MatMul(b, w2[128,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


SHAPE_ARITHMETIC = {
    "one number of the shape": """
        n = Gather(all, zero[]{0})
        n1 = Unsqueeze(n, first{0})
        s = Concat<axis=0>(n1, minus{-1})
    """,
    "all numbers multiplied": """
        n = Gather(all, zero{0})
        c = Gather(all, one{1})
        h = Gather(all, two{2})
        w = Gather(all, three{3})
        hw = Mul(h, w)
        chw = Mul(c, hw)
        s = Concat<axis=0>(n, chw)
    """,
    "a stored width times a measured one": """
        n = Gather(all, zero{0})
        space = Gather(all, two{2})
        more = Mul(space, thirty{32})
        s = Concat<axis=0>(n, more)
    """,
    "the batch times the width": """
        n = Gather(all, zero{0})
        sixteen = Mul(n, sixteen0{16})
        big = Mul(sixteen, eight{8})
        rows = Div(big, width{128})
        s = Concat<axis=0>(rows, fixed{128})
    """,
    "the size of all": """
        n = Gather(all, zero[]{0})
        count = Size(a)
        rest = Div(count, n)
        n1 = Unsqueeze(n, first{0})
        r1 = Unsqueeze(rest, first)
        s = Concat<axis=0>(n1, r1)
    """,
    "a slice, cast and through floats": """
        n = Slice(all, from{0}, to{1})
        tail = Slice(all, to, end{4})
        tail32 = Cast<to=6>(tail)
        product = ReduceProd<keepdims=1>(tail32)
        p64 = Cast<to=7>(product)
        s = Concat<axis=0>(n, p64)
    """,
    "part of the shape only": """
        n = Shape<start=0, end=1>(a)
        tail = Shape<start=1>(a)
        product = ReduceProd<keepdims=1>(tail)
        s = Concat<axis=0>(n, product)
    """,
}


@pytest.mark.parametrize("arithmetic", SHAPE_ARITHMETIC.values(), ids=SHAPE_ARITHMETIC.keys())
def test_reshape_by_arithmetic(arithmetic: str) -> None:
    """However the shape is computed, it comes out right at every batch size."""
    model = build(f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        all = Shape(a)
        {arithmetic}
        b = Reshape(a, s)
        y = MatMul(b, w2[128,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_reshape_of_a_weight() -> None:
    """A weight that is reshaped before it is used goes along."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        scale = Reshape(w2[8], s{1,8,1,1})
        b = Mul(a, scale)
        y = Conv(b, w3[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axis", [0, 1, 2, 3, 4, -1, -3])
def test_flatten(axis: int, opset: int) -> None:
    """The axes on either side are merged."""
    if axis < 0 and opset < 11:
        pytest.skip("axes count from the front before opset 11")
    rows = [1, 2, 16, 64, 256][axis if axis >= 0 else axis + 4]
    model = build(
        f"""
        a = Conv(x[2,3,4,4], w1[8,3,1,1])
        b = Flatten<axis={axis}>(a)
        c = MatMul(w2[5,{rows}], b)
        y = MatMul(c, w3[{256 // rows},3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8} if rows > 1 else None)


@pytest.mark.parametrize("opset", definitions("Transpose"))
def test_transpose(opset: int) -> None:
    """Axes keep their channels, in whichever order."""
    model = build(
        """
        a = Conv(x[2,3,4,5], w1[8,3,1,1])
        b = Transpose<perm=[0,2,3,1]>(a)
        c = MatMul(b, w2[8,6])
        d = Transpose(c)
        e = Reshape(d, s{6,-1})
        y = MatMul(w3[3,6], e)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8, "c": 6})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("axes", ["2", "2,-1"])
def test_squeeze_and_unsqueeze(axes: str, opset: int) -> None:
    """Axes of one position come and go, by attribute or by input."""
    if opset < 13:
        axes = axes.replace("-1", "3")
        gone, new = f"Squeeze<axes=[{axes}]>(a)", "Unsqueeze<axes=[0,3]>(c)"
    else:
        gone, new = f"Squeeze(a, axes{{{axes}}})", "Unsqueeze(c, new{0,-1})"
    model = build(
        f"""
        a = Conv(x[7,3,1,1], w1[8,3,1,1])
        b = {gone}
        c = Reshape(b, s{{7,8}})
        d = {new}
        e = Squeeze{"(d, new)" if opset >= 13 else "<axes=[0,3]>(d)"}
        y = MatMul(e, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_squeeze_without_axes_keeps_all_axes() -> None:
    """An axis that shrinks to one position would vanish, so it stays."""
    model = build("""
        a = Conv(x[7,3,1,1], w1[8,3,1,1])
        b = Squeeze(a)
        y = MatMul(b, w2[8,3])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "Squeeze without axes would drop it, were it one wide" in reasons(couplings)


@pytest.mark.parametrize("opset", definitions("Expand"))
def test_expand_of_channels(opset: int) -> None:
    """A stored width follows the channels, a one stays."""
    model = build(
        """
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        gate = Expand(w2[8,1,1], s{1,8,4,4})
        b = Mul(a, gate)
        c = Expand(b, one{1})
        y = Conv(c, w3[4,8,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_expand_to_channels() -> None:
    """One position repeated for all channels becomes one of them each."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        mean = ReduceSum(a, axes{1})
        all = Shape(a)
        repeated = Expand(mean, all)
        b = Add(a, repeated)
        y = Conv(b, w3[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("Tile"))
def test_tile(opset: int) -> None:
    """Channels laid end to end with themselves; along other axes they are free."""
    model = build(
        """
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Tile(a, repeats{1,3,2,1})
        y = Conv(b, w3[4,24,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("ConstantOfShape"))
@pytest.mark.parametrize(
    ("value", "exact"),
    [("", True), ("<value: tensor = float[1] {0.0}>", True), ("<value: tensor = float[1] {0.5}>", False)],
)
def test_constant_of_shape(value: str, exact: bool, opset: int) -> None:
    """A tensor of one number follows the channels in size; only zeros are zero."""
    model = build(
        f"""
        a = MatMul(x[5,4], w1[4,8])
        all = Shape(a)
        c = ConstantOfShape{value}(all)
        d = Add(a, c)
        t = Transpose(d)
        y = MatMul(d, t)
        """,
        opset=opset,
    )
    if exact:
        assert_removal_equals_zeroing(model, groups={"a": 8})
    else:
        assert_inexact(model, {"a": 8})


def test_constant_of_a_stored_shape() -> None:
    """A stored width follows."""
    model = build("""
        ones = ConstantOfShape<value: tensor = float[1] {1.0}>(s{4,8})
        a = MatMul(x[N,4], w1[4,8])
        m = MatMul(x, ones)
        b = Add(a, m)
        y = MatMul(b, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_range_freezes_what_it_numbers() -> None:
    """Channels that are told apart by number stay."""
    model = build("""
        a = MatMul(x[N,4], w1[4,8])
        numbers = Range(start[]{0.0}, stop[]{8.0}, step[]{1.0})
        b = Mul(a, numbers)
        c = Tanh(b)
        y = MatMul(c, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={})


@pytest.mark.parametrize("upper", [0, 1])
def test_trilu(upper: int) -> None:
    """The two axes of a triangle stay, those before them are free."""
    model = build(f"""
        a = Einsum<equation="ij,jch->cih">(x[7,4], w1[4,8,7])
        b = Trilu<upper={upper}>(a)
        c = Einsum<equation="cih,co->oih">(b, w2[8,3])
        y = Tanh(c)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_shape_of_a_part() -> None:
    """A width that is used as a number, not as a size, keeps its value: a mean of C channels stays divided by C."""
    model = build("""
        a = MatMul(x[N,4], w1[4,8])
        width = Shape<start=1, end=2>(a)
        count = Cast<to=1>(width)
        total = ReduceSum(a, axes{1})
        y = Div(total, count)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})
