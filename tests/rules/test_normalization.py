"""Normalizations and softmax."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rewriting.zeroing import zeroed
from tests.models import OPSETS, build, definitions
from tests.oracle import (
    assert_inexact,
    assert_removal_equals_zeroing,
    coupled,
    feeds_of,
    largest_difference,
    reasons,
    run,
)


@pytest.mark.parametrize("opset", definitions("BatchNormalization"))
@pytest.mark.parametrize("space", ["", ",6", ",4,4", ",2,2,2"])
def test_batch_normalization(space: str, opset: int) -> None:
    """Scale, shift, mean and variance go with their channel, and zeroing leaves the variance alone."""
    kernel = ",1" * space.count(",")
    layer = f"Conv(x[N,3{space}], w1[8,3{kernel}], b1[8])" if space else "Gemm(x[N,3], w1[3,8], b1[8])"
    model = build(
        f"""
        a = {layer}
        b = BatchNormalization<epsilon=0.01>(a, scale[8], shift[8], mean[8], v1[8])
        c = LeakyRelu(b)
        y = {f"Conv(c, w2[4,8{kernel}])" if space else "MatMul(c, w2[8,4])"}
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_batch_normalization_hides_what_the_layer_before_adds() -> None:
    """Its own scale and shift make zeros, whatever arrives."""
    model = build("""
        a = MatMul(x[5,4], w1[4,8])
        b = Exp(a)
        c = BatchNormalization(b, scale[8], shift[8], mean[8], v1[8])
        t = Transpose(c)
        y = MatMul(c, t)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_batch_normalization_in_training_freezes() -> None:
    """With statistics of the batch it is another operator, and not understood."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b, running_mean, running_var = BatchNormalization<training_mode=1>(a, scale[8], shift[8], mean[8], v1[8])
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={})


@pytest.mark.parametrize("opset", definitions("InstanceNormalization"))
def test_instance_normalization(opset: int) -> None:
    """Each channel is normalized by itself."""
    model = build(
        """
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = InstanceNormalization(a, scale[8], shift[8])
        y = Conv(b, w2[4,8,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(("opset", "factors"), [(18, 4), (21, 12), (25, 12)])
def test_group_normalization(opset: int, factors: int) -> None:
    """Whole groups may go; a channel of each group counts in the group's mean."""
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[12,3,1,1], b1[12])
        b = GroupNormalization<num_groups=4>(a, scale[{factors}], shift[{factors}])
        y = Conv(b, w2[5,12,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups=[4], inexact=[3])


@pytest.mark.parametrize("opset", definitions("LayerNormalization"))
@pytest.mark.parametrize("shift", ["", ", shift[8]"])
def test_layer_normalization_is_inexact(shift: str, opset: int) -> None:
    """A channel counts in the mean of the others."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = LayerNormalization(a, scale[8]{shift})
        c = MatMul(b, w2[8,6])
        y = MatMul(c, w3[6,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"c": 6}, inexact={"a": 8})
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("opset", definitions("RMSNormalization"))
def test_rms_normalization_is_inexact(opset: int) -> None:
    """A channel counts in the mean of the squares."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = RMSNormalization(a, scale[8])
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("square", ["Mul(c, c)", "Pow(c, two[]{2.0})"])
def test_layer_normalization_written_out_is_inexact(square: str, opset: int) -> None:
    """As exporters write it below opset 17: two means, the second of what is zero nowhere."""
    axes = "<axes=[2]>" if opset < 18 else ""
    over = ", axes{2}" if opset >= 18 else ""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        mean = ReduceMean{axes}(a{over})
        c = Sub(a, mean)
        squares = {square}
        variance = ReduceMean{axes}(squares{over})
        padded = Add(variance, epsilon[]{{0.00001}})
        deviation = Sqrt(padded)
        normed = Div(c, deviation)
        scaled = Mul(normed, scale[8])
        b = Add(scaled, shift[8])
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    assert_inexact(model, {"a": 8})


def test_rms_normalization_written_out_is_inexact() -> None:
    """The mean of squares counts the positions, although zeros add nothing to it."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        squares = Mul(a, a)
        mean = ReduceMean<keepdims=1>(squares, axes{-1})
        padded = Add(mean, epsilon[]{0.000001})
        deviation = Sqrt(padded)
        one = Reciprocal(deviation)
        normed = Mul(a, one)
        b = Mul(normed, scale[8])
        y = MatMul(b, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


def test_statistics_of_a_norm_stay_what_they_are() -> None:
    """The mean and the deviation that a norm tells are those over what is kept."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        b, mean, deviation = LayerNormalization(a, scale[8], shift[8])
        c = Mul(mean, deviation)
        d = Mul(b, c)
        y = MatMul(d, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


def test_a_norm_of_halves_is_proven_in_floats() -> None:
    """The sum of the squares of many half floats has no room in a half float."""
    model = build("""
        h = Cast<to=10>(x[N,4,5])
        a = MatMul(h, float16 w1[5,8])
        big = Mul(a, float16 hundred[]{100.0})
        b = LayerNormalization(big, float16 scale[8])
        c = MatMul(b, float16 w2[8,3])
        y = Cast<to=1>(c)
    """)
    couplings = coupled(model)
    (group,) = couplings.groups
    assert couplings.masked.group(group.name).exact
    kept = np.array([0, 2, 3, 7])
    pruned = rewrite_kept(couplings, group.per_dim(kept))
    masked = couplings.masked
    blank = zeroed(masked, masked.group(group.name).per_dim(kept))
    for feeds in feeds_of(couplings.graph, 0):
        assert largest_difference(run(pruned, feeds), run(blank, feeds)) < 1e-2


@pytest.mark.parametrize("p", [1, 2])
def test_the_norm_of_a_vector_that_is_not_zero_is_inexact(p: int) -> None:
    """Behind a sigmoid, what is removed counts in the norm until it is masked."""
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        s = Sigmoid(a)
        b = LpNormalization<axis=-1, p={p}>(s)
        y = MatMul(b, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


def test_layer_normalization_over_two_axes() -> None:
    """Every axis from `axis` on is inexact; the weights have all of them."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = LayerNormalization<axis=1>(a, scale[8,4,4], shift[8,4,4])
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_inexact(model, {"a": 8})


def test_statistics_of_a_layer_normalization() -> None:
    """Mean and deviation keep the axes before `axis`; other channels stay exact."""
    model = build("""
        a = Gemm(x[7,5], w1[5,8])
        b = Reshape(a, s{7,4,2})
        c, mean, deviation = LayerNormalization<axis=2>(b, scale[2])
        d = Mul(mean, deviation)
        e = Add(c, d)
        y = Einsum<equation="nhd,hdo->no">(e, w2[4,2,3])
    """)
    assert_removal_equals_zeroing(model, groups=[4], inexact=[2])


@pytest.mark.parametrize("opset", definitions("LpNormalization"))
@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int, opset: int) -> None:
    """Zeros add nothing to a norm."""
    model = build(
        f"""
        a = MatMul(x[N,5], w1[5,8])
        b = LpNormalization<axis=1, p={p}>(a)
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_over_channels_freezes_them(name: str, opset: int) -> None:
    """Shares add up to one over all channels, so none may go."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = {name}<axis=2>(a)
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert f"{name} shares one out over it" in reasons(couplings)


def test_lp_normalization_over_another_axis() -> None:
    """A zeroed channel has no length, and stays zero."""
    model = build("""
        a = MatMul(x[N,4,5], w1[5,8])
        b = LpNormalization<axis=1>(a)
        y = MatMul(b, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_lp_normalization_of_what_is_not_zero() -> None:
    """Where zeroed channels are no longer zero, the norm would count them."""
    model = build("""
        a = MatMul(x[N,5], w1[5,8])
        b = Exp(a)
        c = LpNormalization(b)
        y = MatMul(c, w2[8,3])
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_over_another_axis_leaves_channels_free(name: str) -> None:
    """From opset 13 on only one axis is shared out."""
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = {name}<axis=1>(a)
        y = MatMul(b, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", [9, 11])
def test_softmax_ran_over_all_later_axes(opset: int) -> None:
    """Before opset 13 every axis from `axis` on was shared out together."""
    model = build(
        """
        a = MatMul(x[N,4,5], w1[5,8])
        b = Softmax(a)
        y = MatMul(b, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={})


@pytest.mark.parametrize("opset", definitions("MeanVarianceNormalization"))
def test_mean_variance_normalization_over_space(opset: int) -> None:
    """Each channel by itself where only batch and space are averaged; one that is nothing but zeros has no value."""
    text = """
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        e = {}(a)
        b = MeanVarianceNormalization(e)
        y = Conv(b, w2[4,8,1,1])
    """
    assert_inexact(build(text.format("Relu"), opset=opset), {"a": 8})


def test_mean_variance_normalization_over_channels_is_inexact() -> None:
    """A mean depends on how many channels there are."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = MeanVarianceNormalization<axes=[1,2,3]>(a)
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_inexact(model, {"a": 8})
