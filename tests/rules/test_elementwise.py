"""Operators that work position by position."""

from __future__ import annotations

import pytest

from tests.models import build, definitions
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, coupled, reasons

KEEP_ZERO = (
    *("Abs", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Elu", "Erf", "Floor", "Gelu", "HardSwish", "Identity"),
    *("LeakyRelu", "Mish", "Neg", "Relu", "Round", "Selu", "Shrink<lambd=0.1>", "Sign", "Sin", "Sinh", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu<alpha=0.1>"),
)
MOVE_ZERO = ("Acos", "Cos", "Cosh", "Exp", "HardSigmoid", "Sigmoid", "Softplus")
HAVE_A_POLE_AT_ZERO = ("Log", "Reciprocal", "Acosh")


def forms(*names: str) -> list[tuple[str, int]]:
    """Every operator at every opset at which its definition changed."""
    return [(name, opset) for name in names for opset in definitions(name.partition("<")[0])]


@pytest.mark.parametrize(("name", "opset"), forms(*KEEP_ZERO))
def test_functions_that_keep_zero(name: str, opset: int) -> None:
    """A zeroed unit stays zero behind them, so that even a product of activations may sum over it."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Tanh(a)
        c = {"Abs" if name == "Sqrt" else "Identity"}(b)
        d = {name}(c)
        t = Transpose<perm=[0,2,1]>(d)
        y = MatMul(d, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(("name", "opset"), forms(*MOVE_ZERO))
def test_functions_that_move_zero(name: str, opset: int) -> None:
    """Weights may sum over a unit that is no longer zero, but not a product of activations."""
    to_weights = "y = MatMul(c, w2[8,3])"
    to_activations = "t = Transpose<perm=[0,2,1]>(c)\n y = MatMul(c, t)"
    before = f"a = MatMul(x[N,4,5], w1[5,8])\n b = Tanh(a)\n c = {name}(b)"
    assert_removal_equals_zeroing(build(f"{before}\n {to_weights}", opset=opset), groups={"a": 8})
    assert_inexact(build(f"{before}\n {to_activations}", opset=opset), {"a": 8})


@pytest.mark.parametrize(("name", "opset"), forms(*HAVE_A_POLE_AT_ZERO))
def test_functions_without_a_value_at_zero(name: str, opset: int) -> None:
    """Zeroing a unit in front of them gives infinities or no number at all, which no weight can stop."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Abs(a)
        c = Add(b, b)
        d = {name}(c)
        y = MatMul(d, w2[8,3])
        """,
        opset=opset,
    )
    assert_inexact(model, {"a": 8})


def test_a_pole_that_a_shift_takes_away() -> None:
    """Where something else is added first, such functions are harmless."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Exp(a)
        c = Log(b)
        y = MatMul(c, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("IsNaN", "IsInf", "Where"))
@pytest.mark.parametrize("name", ["IsNaN", "IsInf"])
def test_checks_for_strange_numbers(name: str, opset: int) -> None:
    """A truth for each position."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        strange = {name}(a)
        c = Where(strange, zero[]{{0.0}}, a)
        y = MatMul(c, w2[8,3])
        """,
        opset=max(opset, 10),
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("Not", "And", "Or", "Xor", "Cast"))
@pytest.mark.parametrize(("name", "keeps"), [("And", True), ("Or", True), ("Xor", True)])
def test_logic(name: str, keeps: bool, opset: int) -> None:
    """Truths are taken position by position, and false is their zero."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        h = MatMul(x, w2[5,8])
        p = Greater(a, zero[]{{0.0}})
        q = Less(h, zero)
        n = Not(p)
        r = {name}(n, q)
        b = Cast<to=1>(r)
        c = Mul(b, a)
        y = MatMul(c, w3[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("BitwiseAnd"))
@pytest.mark.parametrize("name", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bits(name: str, opset: int) -> None:
    """Bits of two integers, position by position."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = MatMul(x, w2[5,8])
        a8 = Mul(a, eight[]{{8.0}})
        b8 = Mul(b, eight)
        p = Cast<to=6>(a8)
        q = Cast<to=6>(b8)
        n = BitwiseNot(p)
        m = BitwiseNot(n)
        r = {name}(m, q)
        c = Cast<to=1>(r)
        y = MatMul(c, w3[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("BitShift"))
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift(direction: str, opset: int) -> None:
    """Zero shifted is zero."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Abs(a)
        big = Mul(b, factor[]{{100.0}})
        p = Cast<to=12>(big)
        r = BitShift<direction="{direction}">(p, uint32 by[]{{1}})
        c = Cast<to=1>(r)
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_random_draws_are_left_alone() -> None:
    """With fewer positions, other numbers would be drawn for those that stay."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        p = Greater(a, zero[]{0.0})
        odds = Cast<to=1>(p)
        c = Bernoulli<seed=1.0>(odds)
        y = MatMul(c, w2[8,3])
        """,
        opset=18,
    )
    assert "Bernoulli draws its random numbers position by position" in reasons(coupled(model))


def test_dropout_in_training_is_left_alone() -> None:
    """A Dropout that draws which positions to drop freezes its axes."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        c = Dropout(a, ratio[]{0.5}, bool training[]{1})
        y = MatMul(c, w2[8,3])
        """,
        opset=18,
    )
    assert any("training mode" in reason for reason in reasons(coupled(model)))


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "INT32"])
@pytest.mark.parametrize("opset", definitions("Cast"))
def test_cast(kind: str, opset: int) -> None:
    """Zero is zero in every type."""
    number = {"FLOAT": 1, "DOUBLE": 11, "INT32": 6}[kind]
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Cast<to={number}>(a)
        c = Cast<to=1>(b)
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_bit_cast() -> None:
    """The same bits as another type: those of zero are zero."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = BitCast<to=6>(a)
        c = BitCast<to=1>(b)
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=26,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("CastLike"))
def test_cast_like(opset: int) -> None:
    """The second input gives its type and nothing else: its channels are a group of their own."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = CastLike(a, double other[3]{1.0,2.0,3.0})
        c = Cast<to=1>(b)
        y = MatMul(c, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(
    ("dropout", "opset"),
    [
        ("b, mask = Dropout<ratio=0.3>(a)", 9),
        ("b = Dropout<ratio=0.3>(a)", 10),
        ("b, mask = Dropout(a, ratio[]{0.3})", 12),
        ("b = Dropout(a, ratio[]{0.3}, bool training[]{0})", 13),
        ("b, mask = Dropout(a)", 22),
    ],
)
def test_dropout(dropout: str, opset: int) -> None:
    """At inference it does nothing."""
    model = build(f"a = MatMul(x[N,4,5], w1[5,8])\n {dropout}\n y = MatMul(b, w2[8,3])", opset=opset)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(
    ("clip", "opset", "keeps"),
    [
        ("Clip<min=0.0, max=6.0>(b)", 9, True),
        ("Clip<min=0.25>(b)", 9, False),
        ("Clip<max=0.5>(b)", 6, True),
        ("Clip(b, low[]{0.0}, high[]{0.5})", 11, True),
        ("Clip(b, , high[]{0.5})", 12, True),
        ("Clip(b, low[]{-0.5})", 13, True),
        ("Clip(b, low[]{0.25}, high[]{0.5})", 13, False),
        ("Clip(b, , high[]{-0.25})", 13, False),
        ("Clip(b)", 13, True),
    ],
)
def test_clip(clip: str, opset: int, keeps: bool) -> None:
    """Zero stays zero when it lies between the bounds."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Tanh(a)
        c = {clip}
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=opset,
    )
    if keeps:
        assert_removal_equals_zeroing(model, groups={"a": 8})
    else:
        assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("name", ["Add", "Sub", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("opset", definitions("Add", "Max", "Min", "Sum"))
def test_zero_where_both_are(name: str, opset: int) -> None:
    """Two branches that meet are one group, and zero where both are."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = MatMul(x, w2[5,8])
        c = {name}(a, b)
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("name", ["Max", "Min", "Sum", "Mean"])
def test_any_number_of_operands(name: str) -> None:
    """One operand or three, all of the same channels."""
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = MatMul(x, w2[5,8])
        c = {name}(a, b, w3[8])
        d = {name}(c)
        t = Transpose<perm=[0,2,1]>(d)
        y = MatMul(d, t)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("name", ["Mul", "PRelu"])
@pytest.mark.parametrize("shape", ["8", "1", "1,8", "4,1", "1,1,1"])
def test_broadcast_weights(name: str, shape: str) -> None:
    """A weight that broadcasts shares the axes it has and none of those that are one wide."""
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = {name}(a, w2[{shape}])
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(b, t)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("PRelu"))
def test_prelu_of_channels(opset: int) -> None:
    """A slope for every channel."""
    model = build(
        """
        a = Conv(x[N,3,4,4], w1[8,3,1,1], b1[8])
        b = PRelu(a, slope[8,1,1])
        y = Conv(b, w2[4,8,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_an_addend_that_all_channels_share_is_no_zero() -> None:
    """A scalar added to a zeroed unit is seen by a product of activations, not by weights."""
    before = "a = MatMul(x[N,4,5], w1[5,8])\n b = Add(a, half[]{0.5})"
    assert_removal_equals_zeroing(build(f"{before}\n y = MatMul(b, w2[8,3])"), groups={"a": 8})
    assert_inexact(build(f"{before}\n t = Transpose<perm=[0,2,1]>(b)\n y = MatMul(b, t)"), {"a": 8})


@pytest.mark.parametrize("opset", definitions("Div"))
def test_a_divisor_keeps_its_numbers(opset: int) -> None:
    """A weight that divides is left alone by zeroing, and sliced by removing."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = Div(a, v1[8])
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(b, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_a_divisor_that_is_computed_from_weights_keeps_its_numbers() -> None:
    """A batch normalization written out: the root of the variance divides."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        v = Add(v1[8,1,1], eps[]{0.001})
        deviation = Sqrt(v)
        b = Sub(a, mean[8,1,1])
        c = Div(b, deviation)
        d = Mul(c, scale[8,1,1])
        e = Add(d, shift[8,1,1])
        y = Conv(e, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_a_computed_divisor_must_not_be_zeroed() -> None:
    """Zero over zero is no number: such a unit cannot be judged by zeroing it."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Abs(a)
        c = Div(a, b)
        y = MatMul(c, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("opset", definitions("Pow"))
@pytest.mark.parametrize("exponent", ["two[]{2.0}", "v2[8]", "int64 two[]{2}"])
def test_a_positive_power_keeps_zero(exponent: str, opset: int) -> None:
    """Zero to a positive power is zero; the exponents are left alone by zeroing."""
    if exponent.startswith("int64") and opset < 12:
        pytest.skip("base and exponent have one type before opset 12")
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Abs(a)
        c = Pow(b, {exponent})
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_a_negative_power_has_a_pole_at_zero() -> None:
    """One over zero cannot be judged by zeroing."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Pow(a, exponent[]{-2.0})
        y = MatMul(b, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("opset", definitions("Mod"))
def test_modulo(opset: int) -> None:
    """The remainder of zero is zero, and the divisor is left alone."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = Mod<fmod=1>(a, v2[8])
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(b, t)
        """,
        opset=max(opset, 10),
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("name", ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"])
@pytest.mark.parametrize("opset", definitions("Equal", "Greater", "GreaterOrEqual"))
def test_comparisons_and_where(name: str, opset: int) -> None:
    """A choice between two branches by comparing them: all three are one group, zero where both branches are."""
    if name.endswith("OrEqual") and opset < 12:
        pytest.skip("comes with opset 12")
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = MatMul(x, w2[5,8])
        ai = Cast<to=6>(a)
        bi = Cast<to=6>(b)
        larger = {name}(ai, bi)
        c = Where(larger, a, b)
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_where_with_a_number_for_the_others() -> None:
    """A number filled in is no zero, unless it is zero."""
    text = """
        a = MatMul(x[N,4,5], w1[5,8])
        positive = Greater(a, zero[]{{0.0}})
        c = Where(positive, a, other[]{{{number}}})
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
    """
    assert_removal_equals_zeroing(build(text.format(number="0.0")), groups={"a": 8})
    assert_inexact(build(text.format(number="0.5")), {"a": 8})


def test_swiglu() -> None:
    """A gate times a value: zero where either is."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = MatMul(x, w2[5,8])
        c = SwiGLU<alpha=0.5>(a, b)
        t = Transpose<perm=[0,2,1]>(c)
        y = MatMul(c, t)
        """,
        opset=28,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})
