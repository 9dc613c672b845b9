"""Operators that read, write or rank positions by number."""

from __future__ import annotations

import pytest

from tests.models import build, definitions, since
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, reasons

READ = "Gather looks positions up by number"

LOOKUPS = [
    ("0,1,2,3,4,5,6,7", [8]),
    ("4,5,6,7,0,1,2,3", [4, 4]),
    ("2,3,4", [2, 3, 3]),
    ("7,6,5,4,3,2,1,0", [8]),
    ("0,2,4,6", [4]),
    ("1,4,-1", [3, 5]),
    ("3,3,1,3,0,1", [3, 5]),
    ("0,1,2,3,2,3,4,5", [2, 2, 2, 2]),
    ("5", [7]),
]


@pytest.mark.parametrize(("numbers", "sizes"), LOOKUPS)
def test_stored_numbers_follow_the_channels(numbers: str, sizes: list[int]) -> None:
    """Channels looked up by stored numbers go with their numbers, each once, more than once, or in another order."""
    count = len(numbers.split(","))
    model = build(f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Gather<axis=1>(a, i{{{numbers}}})
        d = Conv(b, w2[4,{count},1,1])
        e = Conv(a, w3[4,8,1,1])
        y = Add(d, e)
    """)
    assert_removal_equals_zeroing(model, groups=sizes)


def test_many_channels_in_another_order() -> None:
    """A permutation of two thousand channels is followed one by one."""
    order = ",".join(str(7 * position % 2000) for position in range(2000))
    model = build(f"""
        a = MatMul(x[2,5], w1[5,2000])
        b = Gather<axis=1>(a, i{{{order}}})
        y = MatMul(b, w2[2000,3])
    """)
    assert_removal_equals_zeroing(model, groups=[2000])


def test_what_is_looked_up_passes_on_all_it_is() -> None:
    """Lookups of lookups, and numbers that two of them share, still come out right."""
    model = build("""
        a = MatMul(x[N,5], w1[5,12])
        b = Gather<axis=-1>(a, i{6,7,8,9,10,11,0,1,2,3,4,5})
        c = Gather<axis=-1>(b, j{0,1,2,9,10,11})
        d = MatMul(x, w2[5,12])
        e = Gather<axis=1>(d, i)
        f = MatMul(e, w3[12,6])
        g = Add(c, f)
        h = Relu(g)
        k = MatMul(h, w4[6,3])
        m = MatMul(b, w5[12,3])
        y = Add(k, m)
    """)
    assert_removal_equals_zeroing(model)


def test_half_of_a_head_turned_by_number() -> None:
    """Rotary embedding with a lookup that swaps halves: both halves of every head are one group."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,16])
        heads = Reshape(a, s{0,0,2,8})
        swapped = Gather<axis=3>(heads, i{4,5,6,7,0,1,2,3})
        left = Mul(heads, cos[8])
        right = Mul(swapped, sin[8])
        both = Add(left, right)
        flat = Reshape(both, t{0,0,16})
        y = MatMul(flat, w2[16,3])
    """)
    assert_removal_equals_zeroing(model, groups=[2, 4])


def test_channels_of_the_input_stay_where_they_are() -> None:
    """Nothing is taken apart where nothing may go."""
    model = build("""
        a = Gather<axis=1>(x[N,3,4,4], i{2,1,0})
        b = Conv(a, w1[8,3,1,1])
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"b": 8})


@pytest.mark.parametrize("index", ["int64 x2[3]", "i[1,3]{0,1,2}", "i[]{3}"])
def test_computed_numbers_may_be_any(index: str) -> None:
    """Where positions are told by data, or one alone is taken, all stay."""
    model = build(f"""
        a = MatMul(x[4,5], w1[5,8])
        b = Gather<axis=1>(a, {index})
        y = ReduceSum(b)
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert READ in reasons(couplings)


@pytest.mark.parametrize("opset", definitions("GatherElements"))
def test_elements_looked_up_along_another_axis(opset: int) -> None:
    """The channels are free, the axis along which numbers are looked up is not; stored numbers keep their values."""
    model = build(
        """
        a = MatMul(x[2,4,5], w1[5,8])
        b = GatherElements<axis=1>(a, i[2,3,8]{0,3,1,2,1,1,2,3,0,0})
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_elements_that_all_look_up_the_same() -> None:
    """Stored numbers that are alike everywhere follow the channels, as those of Gather do."""
    model = build("""
        a = MatMul(x[2,5], w1[5,8])
        b = GatherElements<axis=1>(a, i[2,4]{7,0,3,3})
        c = MatMul(b, w2[4,3])
        d = MatMul(a, w3[8,3])
        y = Add(c, d)
    """)
    assert_removal_equals_zeroing(model, groups=[3, 5])


@pytest.mark.parametrize("index", ["i[2,4]{7,0,3,3,1,2,5,6}", "int64 x2[2,4]"])
def test_elements_that_look_up_different_ones(index: str) -> None:
    """Channels looked up by different numbers in different places stay."""
    model = build(f"""
        a = MatMul(x[2,5], w1[5,8])
        b = GatherElements<axis=1>(a, {index})
        y = ReduceSum(b)
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "GatherElements looks positions up by number" in reasons(couplings)


def test_elements_of_the_first_channels_only() -> None:
    """An index that is shorter than the data reads its first positions."""
    model = build("""
        a = MatMul(x[2,4,5], w1[5,8])
        b = GatherElements<axis=1>(a, i[2,4,6]{0})
        y = MatMul(b, w2[6,3])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "GatherElements reads its first positions only" in reasons(couplings)


@pytest.mark.parametrize("opset", definitions("GatherND"))
@pytest.mark.parametrize(
    ("gather", "sizes"),
    [
        ("GatherND(a, i[3,2]{0,1,1,3,1,0})", [8]),
        ("GatherND(a, i[3,1]{0,1,0})", [8]),
        ("GatherND(a, int64 x2[3,2])", [8]),
        ("GatherND<batch_dims=1>(a, i[3,3,1]{0,1,3})", [8]),
    ],
)
def test_slices_looked_up(gather: str, sizes: list[int], opset: int) -> None:
    """The channels of slices that are looked up by several numbers are free."""
    if "batch_dims" in gather and opset < 12:
        opset = 12
    model = build(f"a = MatMul(x[3,4,5], w1[5,8])\n b = {gather}\n y = MatMul(b, w2[8,3])", opset=opset)
    assert_removal_equals_zeroing(model, groups=sizes)


def test_slices_looked_up_along_channels() -> None:
    """One stored number each, along the first axis, follows the channels; two at a time keep them."""
    whole = build("""
        a = MatMul(w1[8,5], x[5,4])
        b = GatherND(a, i[4,1]{6,1,1,0})
        c = MatMul(w2[3,4], b)
        d = MatMul(w3[3,8], a)
        y = Add(c, d)
    """)
    assert_removal_equals_zeroing(whole, groups=[3, 5])
    pairs = build("""
        a = MatMul(w1[8,5], x[5,4])
        b = GatherND(a, i[3,2]{6,1,1,0,2,2})
        y = ReduceSum(b)
    """)
    assert_removal_equals_zeroing(pairs, groups={})


def test_gather_nd_of_onnx_runtime() -> None:
    """ONNX Runtime's older operator of the same name is the same."""
    model = build("""
        a = MatMul(x[2,4,5], w1[5,8])
        b = com.microsoft.GatherND(a, i[3,1]{0,1,0})
        y = ReduceSum(b, axes{2})
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


SCATTERED = [
    ("ScatterND(data, i[3,2]{0,1,1,3,1,0}, u[3,8])", 16),
    ("ScatterND(data, i[1,1]{1}, u[1,4,8])", 16),
    ('ScatterND<reduction="add">(data, i[3,2]{0,1,1,3,1,0}, u[3,8])', 18),
    ('ScatterND<reduction="max">(data, i[3,2]{0,1,1,3,1,0}, u[3,8])', 18),
    ('ScatterND<reduction="mul">(data, i[3,2]{0,1,1,3,1,0}, u[3,8])', 18),
    ("ScatterElements<axis=1>(data, i[2,3,8]{0,3,1,2,1,1,2}, u[2,3,8])", 18),
    ('ScatterElements<axis=1, reduction="add">(data, i[2,3,8]{0,3,1,2}, u[2,3,8])', 18),
    ("Scatter<axis=1>(data, i[2,3,8]{0,3,1,2}, u[2,3,8])", 9),
    ("TensorScatter<axis=1>(data, u[2,3,8], at{0,1})", 24),
    ('TensorScatter<axis=1, mode="circular">(data, u[2,3,8], at{2,3})', 24),
    ("TensorScatter(data, u[2,3,8])", 24),
]


@pytest.mark.parametrize(("scatter", "opset"), SCATTERED)
def test_channels_of_what_is_written_by_number(scatter: str, opset: int) -> None:
    """Data, what is written into it, and the result have the same channels, which are free and zero where both are."""
    model = build(
        f"""
        data = MatMul(x[2,4,5], w1[5,8])
        b = {scatter}
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(b, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"data": 8})


def test_what_is_written_may_not_be_zero() -> None:
    """Where what is written is no longer zero, neither is the result; multiplied into zero, it is."""
    text = """
        data = MatMul(x[2,4,5], w1[5,8])
        m = MatMul(x2[1,4,5], w2[5,8])
        u = Sigmoid(m)
        b = ScatterND<reduction="%s">(data, i[1,1]{1}, u)
        y = ReduceSum(b, axes{2})
    """
    assert_inexact(build(text % "add"), {"data": 8})
    assert_removal_equals_zeroing(build(text % "mul"), groups={"data": 8})


@pytest.mark.parametrize(
    ("scatter", "opset"),
    [
        ("ScatterND(data, i[3,2]{0,1,1,3,1,0}, u[3])", 16),
        ("ScatterElements<axis=1>(data, i[2,3]{0,3,1,2,1,1}, u[2,3])", 16),
        ("ScatterElements<axis=1>(data, int64 x2[2,3], u[2,3])", 16),
        ("ScatterElements<axis=0>(data, i[2,3]{0,1,1}, u[2,3])", 16),
    ],
)
def test_channels_written_by_number_stay(scatter: str, opset: int) -> None:
    """Which of them are written is told by data, by pairs of numbers, or by other numbers in other places."""
    model = build(f"data = MatMul(x[2,5], w1[5,8])\n b = {scatter}\n y = MatMul(b, w2[8,3])", opset=opset)
    assert_removal_equals_zeroing(model, groups={})


@pytest.mark.parametrize(
    ("made", "scatter", "read", "sizes"),
    [
        ("MatMul(w1[8,5], x[5,4])", "ScatterND(data, i[3,1]{6,1,0}, u[3,4])", "MatMul(w2[3,8], b)", [3, 5]),
        ("MatMul(w1[8,5], x[5,4])", "ScatterND(data, i[2,1]{2,3}, zero[2,4]{0.0})", "MatMul(w2[3,8], b)", [2, 2, 4]),
        (
            "MatMul(x[2,5], w1[5,8])",
            "ScatterElements<axis=1>(data, i[2,3]{6,1,0}, u[2,3])",
            "MatMul(b, w2[8,3])",
            [3, 5],
        ),
        (
            "MatMul(x[2,5], w1[5,8])",
            'ScatterElements<axis=1, reduction="add">(data, i[2,3]{6,1,1}, u[2,3])',
            "MatMul(b, w2[8,3])",
            [2, 6],
        ),
    ],
)
def test_channels_written_by_stored_numbers(made: str, scatter: str, read: str, sizes: list[int]) -> None:
    """Stored numbers follow the channels, and what is written there goes with them."""
    model = build(f"data = {made}\n b = {scatter}\n y = {read}", opset=18)
    assert_removal_equals_zeroing(model, groups=sizes)


def test_a_part_of_a_packed_bias_that_is_written_over() -> None:
    """Keys without a bias, as Swin's second version has them: heads and widths of all three are free."""
    model = build("""
        bias = ScatterND(packed[24], i[8,1]{8,9,10,11,12,13,14,15}, none[8]{0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0})
        m = MatMul(x[2,5,6], w1[6,24])
        qkv = Add(m, bias)
        split = Reshape(qkv, s{2,5,3,2,4})
        t = Transpose<perm=[2,0,3,1,4]>(split)
        q = Gather<axis=0>(t, i0[]{0})
        k = Gather<axis=0>(t, i1[]{1})
        v = Gather<axis=0>(t, i2[]{2})
        kt = Transpose<perm=[0,1,3,2]>(k)
        logits = MatMul(q, kt)
        p = Softmax<axis=-1>(logits)
        a = MatMul(p, v)
        back = Transpose<perm=[0,2,1,3]>(a)
        flat = Reshape(back, f{2,5,8})
        y = MatMul(flat, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups=[2, 4])


@pytest.mark.parametrize("opset", definitions("TopK"))
@pytest.mark.parametrize("axis", [1, -2])
def test_the_largest_in_time(axis: int, opset: int) -> None:
    """Channels are free where time is ranked."""
    k = "k=2" if opset < 10 else ""
    given = "" if k else ", k{2}"
    options = ", ".join(part for part in (f"axis={axis}", k) if part)
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b, places = TopK<{options}>(a{given})
        c = MatMul(b, w2[8,3])
        d = Cast<to=1>(places)
        e = MatMul(d, w3[8,3])
        y = Add(c, e)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_the_largest_of_channels() -> None:
    """Channels that are ranked stay."""
    model = build("a = MatMul(x[N,5], w1[5,8])\n b, places = TopK(a, k{4})\n y = MatMul(b, w2[4,3])")
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "TopK ranks its positions" in reasons(couplings)


@pytest.mark.parametrize("opset", definitions("Compress"))
def test_compress(opset: int) -> None:
    """Channels are free where another axis is picked from, and stay where they are picked themselves."""
    time = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = Compress<axis=1>(a, bool flags[4]{1,0,1,1})
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(time, groups={"a": 8})
    for pick, size in (("Compress<axis=1>(a, bool flags[8]{1,0})", 4), ("Compress(a, bool flags[8]{1,0})", None)):
        read = "MatMul(b, w2[4,3])" if size else "ReduceSum(b)"
        assert_removal_equals_zeroing(build(f"a = MatMul(x[2,5], w1[5,8])\n b = {pick}\n y = {read}"), groups={})


@pytest.mark.parametrize("domain", ["", "com.microsoft."])
def test_unique(domain: str) -> None:
    """What is compared as a whole stays."""
    made = "MatMul(x[2,5], w1[5,8])" if not domain else "MatMul(x[5], w1[5,8])"
    outputs = "b" if not domain else "b, places, counts"
    model = build(f"a = {made}\n {outputs} = {domain}Unique(a)\n y = ReduceSum(b)")
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert f"{domain}Unique compares all that stands in it" in reasons(couplings)


@pytest.mark.parametrize("opset", definitions("OneHot"))
@pytest.mark.parametrize(("axis", "read"), [(-1, "Mul(b, w2[8,4])"), (1, "MatMul(b, w2[8])")])
def test_one_hot(axis: int, read: str, opset: int) -> None:
    """Classes stay; the axes of what is classified are free."""
    model = build(
        f"""
        a = MatMul(x[2,5], w1[5,8])
        i = Cast<to=7>(a)
        b = OneHot<axis={axis}>(i, depth{{4}}, onoff{{0.0,1.0}})
        c = {read}
        y = ReduceL2(c)
        """,
        opset=min(opset, 13),
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", since(11))
def test_reverse_sequence(opset: int) -> None:
    """Channels are free where time is turned round, and stay where they are."""
    time = build(
        """
        a = MatMul(x[4,2,5], w1[5,8])
        b = ReverseSequence(a, lengths{3,4})
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(time, groups={"a": 8})
    channels = build(
        """
        a = MatMul(x[2,5], w1[5,8])
        b = ReverseSequence<time_axis=1, batch_axis=0>(a, lengths{3,8})
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    couplings = assert_removal_equals_zeroing(channels, groups={})
    assert "ReverseSequence turns it round" in reasons(couplings)


@pytest.mark.parametrize(
    "makes",
    [
        "NonZero(a)",
        "NonMaxSuppression(boxes[1,2,4], scores, most{2})",
        "EyeLike<dtype=7>(a)",
        "RandomNormalLike<dtype=1>(a)",
    ],
)
def test_operators_that_tell_positions_apart(makes: str) -> None:
    """What they read stays, for a reason of their own."""
    model = build(f"""
        a = MatMul(x[2,5], w1[5,8])
        scores = Reshape(a, s{{1,8,2}})
        b = {makes}
        c = Cast<to=1>(b)
        d = ReduceSum(c)
        e = ReduceSum(a)
        f = ReduceSum(scores)
        y = Sum(d, e, f)
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert any(reason.startswith(makes.split("(")[0].split("<")[0]) for reason in reasons(couplings))
