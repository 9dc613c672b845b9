"""Convolutions, pooling and resizing."""

from __future__ import annotations

import pytest

from tests.models import OPSETS, build, since
from tests.oracle import assert_removal_equals_zeroing, reasons


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_conv_in_groups(groups: int, opset: int) -> None:
    """A grouped Conv loses whole groups, or the same position of each group."""
    model = build(
        f"""
        a = Conv(x[N,3,6,6], w1[8,3,1,1], b1[8])
        b = Conv<group={groups}, pads=[1,1,1,1]>(a, w2[8,{8 // groups},3,3], b2[8])
        c = Relu(b)
        y = Conv(c, w3[4,8,1,1], b3[4])
        """,
        opset=opset,
    )
    sizes = {1: [8, 8], 2: [2, 4, 4], 4: [4, 2, 2], 8: [8]}
    assert_removal_equals_zeroing(model, groups=sizes[groups])


@pytest.mark.parametrize("bias", ["", ", b2[16]"])
def test_depthwise_conv_with_multiplier(bias: str) -> None:
    """With two outputs a channel, either a channel with both goes, or one position of every pair."""
    model = build(f"""
        a = Conv(x[N,3,6,6], w1[8,3,1,1])
        b = Conv<group=8>(a, w2[16,1,3,3]{bias})
        y = Conv(b, w3[4,16,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8, "b": 2})


def test_depthwise_conv_of_the_input_keeps_its_channels() -> None:
    """The channels of the model's input stay, those that the multiplier adds may go."""
    model = build("""
        a = Conv<group=3>(x[N,3,6,6], w1[12,1,3,3])
        y = Conv(a, w2[4,12,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 4})


@pytest.mark.parametrize(
    ("attributes", "space", "kernel"),
    [
        ("strides=[2,2]", "9,9", "3,3"),
        ("dilations=[2,2]", "9,9", "3,3"),
        ('auto_pad="SAME_UPPER"', "9,9", "3,3"),
        ("pads=[1,1]", "9", "3"),
        ("strides=[1,2,1], pads=[1,0,1,1,0,1]", "4,5,4", "3,2,3"),
    ],
)
def test_conv_in_any_space(attributes: str, space: str, kernel: str) -> None:
    """Strides, dilations, padding, and one or three dimensions change nothing about channels."""
    model = build(f"""
        a = Conv<{attributes}>(x[N,3,{space}], w1[8,3,{kernel}], b1[8])
        b = Relu(a)
        y = Conv<group=2>(b, w2[4,4,{kernel}], b2[4])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 4})


def test_channels_of_one_conv_that_reads_itself_through_a_residual() -> None:
    """Where a Conv's inputs and outputs are one group, both axes of its weight go together."""
    model = build("""
        a = Conv(x[N,3,6,6], w1[8,3,1,1])
        b = Conv<pads=[1,1,1,1]>(a, w2[8,8,3,3])
        c = Add(a, b)
        d = Relu(c)
        y = Conv(d, w3[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_conv_transpose_in_groups(groups: int, opset: int) -> None:
    """The weight of a ConvTranspose has its channels the other way round."""
    model = build(
        f"""
        a = Conv(x[N,3,6,6], w1[8,3,1,1], b1[8])
        b = ConvTranspose<group={groups}, strides=[2,2]>(a, w2[8,{16 // groups},2,2], b2[16])
        c = Relu(b)
        y = Conv(c, w3[4,16,1,1], b3[4])
        """,
        opset=opset,
    )
    sizes = {1: [8, 16], 2: [2, 4, 8], 8: [8, 2]}
    assert_removal_equals_zeroing(model, groups=sizes[groups])


@pytest.mark.parametrize(
    ("space", "kernel", "attributes"),
    [("7", "3", "strides=[2], output_padding=[1]"), ("3,4,3", "2,2,2", "dilations=[2,1,1]"), ("5,5", "3,3", "group=1")],
)
def test_conv_transpose_in_any_space(space: str, kernel: str, attributes: str) -> None:
    """One and three dimensions, dilation and output padding change nothing about channels."""
    model = build(f"""
        a = ConvTranspose<{attributes}>(x[N,3,{space}], w1[3,8,{kernel}])
        y = ConvTranspose(a, w2[8,2,{kernel}])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    "pool",
    [
        "MaxPool<kernel_shape=[2,2], strides=[2,2]>",
        "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>",
        "LpPool<kernel_shape=[2,2], p=2>",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GlobalLpPool<p=2>",
    ],
)
def test_pools(pool: str, opset: int) -> None:
    """A pool takes each channel by itself."""
    model = build(
        f"""
        a = Conv(x[N,3,6,6], w1[8,3,1,1], b1[8])
        b = {pool}(a)
        y = Conv(b, w2[4,8,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_max_pool_with_indices_keeps_its_channels() -> None:
    """The second output of MaxPool counts positions through all channels, so those stay."""
    model = build("""
        a = Conv(x[N,3,6,6], w1[8,3,1,1])
        b, places = MaxPool<kernel_shape=[2,2]>(a)
        c = Cast<to=1>(places)
        y = Conv(c, w2[4,8,1,1])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "MaxPool numbers its positions" in reasons(couplings)


@pytest.mark.parametrize(
    ("resize", "opset"),
    [
        ("Upsample<scales=[1.0,1.0,2.0,2.0]>(a)", 7),
        ("Upsample(a, s{1.0,1.0,2.0,2.0})", 9),
        ("Resize(a, s{1.0,1.0,2.0,2.0})", 10),
        *(("Resize(a, float roi[0]{}, s{1.0,1.0,2.0,2.0})", opset) for opset in since(11)),
        ('Resize<mode="linear">(a, , s{1.0,1.0,2.0,0.5})', 13),
        ('Resize<mode="cubic">(a, , s{1.0,1.0,2.0,2.0})', 13),
        *(("Resize(a, , , s{2,8,9,12})", opset) for opset in since(13)),
        ('Resize<axes=[2,3], mode="linear">(a, , s{2.0,2.0})', 18),
        ("Resize<axes=[2,3]>(a, , , s{9,9})", 18),
        ("Resize<axes=[1,3]>(a, , , s{8,9})", 18),
        ("Resize<axes=[-1,-3]>(a, , , s{9,8})", 18),
    ],
)
def test_resize(resize: str, opset: int) -> None:
    """Scales of one leave channels alone, and a size that names the channels follows them."""
    model = build(
        f"""
        a = Conv(x[2,3,6,6], w1[8,3,1,1], b1[8])
        b = {resize}
        y = Conv(b, w2[4,8,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_resize_that_resamples_channels_freezes() -> None:
    """Twice as many channels are not the same channels."""
    model = build("""
        a = Conv(x[N,3,6,6], w1[8,3,1,1])
        b = Resize(a, , s{1.0,2.0,1.0,1.0})
        y = Conv(b, w2[4,16,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={})


def test_resize_to_the_size_of_another_tensor() -> None:
    """Sizes put together from shapes follow the channels, at every batch size."""
    model = build("""
        a = Conv(x[N,3,6,6], w1[8,3,1,1], b1[8])
        small = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
        all = Shape(a)
        space = Slice(all, from{2}, to{4})
        first = Shape(small)
        channels = Slice(first, zero{0}, two{2})
        sizes = Concat<axis=0>(channels, space)
        b = Resize<mode="linear">(small, , , sizes)
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, opset: int) -> None:
    """Each channel of the result takes its block of channels along."""
    if opset < 11 and mode == "CRD":
        pytest.skip("depth, column, row is the only order before opset 11")
    attributes = "blocksize=2" if opset < 11 else f'blocksize=2, mode="{mode}"'
    model = build(
        f"""
        a = Conv(x[N,3,4,4], w1[24,3,1,1], b1[24])
        b = DepthToSpace<{attributes}>(a)
        y = Conv(b, w2[4,6,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 6})


@pytest.mark.parametrize("opset", OPSETS)
def test_space_to_depth(opset: int) -> None:
    """A channel that goes takes all its blocks from the reader."""
    model = build(
        """
        a = Conv(x[N,3,4,4], w1[6,3,1,1], b1[6])
        b = SpaceToDepth<blocksize=2>(a)
        y = Conv(b, w2[4,24,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 6})
