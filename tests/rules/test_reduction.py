"""Reductions."""

from __future__ import annotations

import pytest

from tests.models import build, definitions
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, reasons

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
OTHERS = ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")


def reduction(name: str, opset: int, axes: str, keep: int) -> str:
    """A reduction of b, its axes an attribute or an input, as the opset wants them."""
    if opset >= (13 if name == "ReduceSum" else 18):
        return f"{name}<keepdims={keep}>(b, axes{{{axes}}})"
    return f"{name}<keepdims={keep}, axes=[{axes}]>(b)"


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name in SUMS for opset in definitions(name)])
@pytest.mark.parametrize("axes", ["2", "-1", "1,2", "2,0"])
@pytest.mark.parametrize("keep", [0, 1])
def test_sums_over_channels_are_sinks(name: str, opset: int, axes: str, keep: int) -> None:
    """A zero adds nothing to a sum."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Tanh(a)
        y = {reduction(name, opset, axes, keep)}
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("name", SUMS)
def test_sums_over_what_is_not_zero(name: str) -> None:
    """Where zeroed channels are no longer zero, a sum would count them."""
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Sigmoid(a)
        y = {reduction(name, 18, "2", 1)}
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name in (*SUMS, *OTHERS) for opset in definitions(name)])
@pytest.mark.parametrize("keep", [0, 1])
def test_reductions_over_other_axes(name: str, opset: int, keep: int) -> None:
    """Channels that are not reduced are free."""
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        e = Exp(a)
        b = Add(e, one[]{{1.0}})
        c = {reduction(name, opset, "2,3", keep)}
        y = {"Conv(c, w2[4,8,1,1])" if keep else "MatMul(c, w2[8,4])"}
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_a_pool_over_channels_that_stand_last_is_a_mean() -> None:
    """As TensorFlow's layer normalisation is exported: a mean over channels, which is not exact but is no refusal."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        m = GlobalAveragePool(a)
        c = Sub(a, m)
        y = MatMul(c, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("opset", definitions("ReduceMean"))
@pytest.mark.parametrize("keep", [0, 1])
def test_mean_over_other_axes(keep: int, opset: int) -> None:
    """A mean over space, and a product of activations behind it."""
    model = build(
        f"""
        b = Conv(x[N,3,4,4], w1[8,3,1,1])
        c = {reduction("ReduceMean", opset, "2,3", keep)}
        d = Flatten(c)
        t = Transpose(d)
        y = MatMul(d, t)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"b": 8})


@pytest.mark.parametrize("opset", definitions("ReduceMean"))
def test_mean_over_channels_is_inexact(opset: int) -> None:
    """A mean depends on how many channels there are."""
    model = build(
        f"""
        b = MatMul(x[N,4,5], w1[5,8])
        y = {reduction("ReduceMean", opset, "2", 1)}
        """,
        opset=opset,
    )
    assert_inexact(model, {"b": 8})


@pytest.mark.parametrize(("name", "opset"), [(name, opset) for name in OTHERS for opset in definitions(name)])
def test_other_reductions_over_channels_freeze_them(name: str, opset: int) -> None:
    """A zero would count as any other number."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Exp(a)
        y = {reduction(name, opset, "2", 1)}
        """,
        opset=opset,
    )
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert f"{name} runs over it" in reasons(couplings)


def test_the_logarithm_of_an_empty_sum_cannot_be_compared() -> None:
    """A zeroed channel has no logarithm."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        b = Abs(a)
        c = ReduceLogSum<keepdims=0>(b, axes{1})
        y = MatMul(c, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("name", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("opset", definitions("ArgMax"))
@pytest.mark.parametrize("keep", [0, 1])
def test_place_of_the_largest(name: str, keep: int, opset: int) -> None:
    """Channels over which it runs stay, other axes are free."""
    over_space = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = {name}<axis=1, keepdims={keep}>(a)
        c = Cast<to=1>(b)
        y = MatMul(c, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(over_space, groups={"a": 8})
    over_channels = build(f"a = MatMul(x[N,5], w1[5,8])\n y = {name}<axis=-1, keepdims={keep}>(a)", opset=opset)
    assert_removal_equals_zeroing(over_channels, groups={})


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("noop", [0, 1])
def test_reduction_without_axes(name: str, noop: int) -> None:
    """Without axes all are reduced, or none where that is asked for."""
    read = "MatMul(b, w2[8,3])" if noop else "Identity(b)"
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = {name}<noop_with_empty_axes={noop}>(a)
        y = {read}
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", ["1", "-1"])
def test_running_sums(exclusive: int, reverse: int, axis: str) -> None:
    """To sums of all channels before, a zero adds nothing; the channels go on behind them."""
    model = build(f"""
        a = MatMul(x[N,5], w1[5,8])
        b = Tanh(a)
        c = CumSum<exclusive={exclusive}, reverse={reverse}>(b, axis[]{{{axis}}})
        y = MatMul(c, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_running_sums_over_what_is_not_zero() -> None:
    """A zeroed channel that is not zero any more counts in all sums behind it; the sums are not zero there either."""
    assert_inexact(
        build("""
        a = MatMul(x[N,5], w1[5,8])
        b = Sigmoid(a)
        c = CumSum(b, axis[]{1})
        y = MatMul(c, w2[8,3])
    """),
        {"a": 8},
    )
    assert_inexact(
        build("""
        a = MatMul(x[N,5], w1[5,8])
        c = CumSum(a, axis[]{1})
        y = ReduceSum(c, axes{1})
    """),
        {"a": 8},
    )


@pytest.mark.parametrize("name", ["CumSum", "CumProd"])
def test_running_along_time(name: str) -> None:
    """Channels that are not run over are free."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = {name}(a, axis[]{{1}})
        y = ReduceSum(b, axes{{2}})
        """,
        opset=18 if name == "CumSum" else 26,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_running_products_over_channels_freeze_them() -> None:
    """A zero would end all products behind it."""
    model = build(
        """
        a = MatMul(x[N,5], w1[5,8])
        b = CumProd(a, axis[]{1})
        y = MatMul(b, w2[8,3])
        """,
        opset=26,
    )
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "CumProd runs over it" in reasons(couplings)
