"""Operators that work on space or time, channel by channel."""

from __future__ import annotations

import pytest

from tests.models import build, definitions
from tests.oracle import assert_removal_equals_zeroing, reasons


@pytest.mark.parametrize("opset", definitions("GridSample"))
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_grid_sample(padding: str, opset: int) -> None:
    """Channels are read at the points of a grid, each by itself."""
    model = build(
        f"""
        a = Conv(x[2,3,4,4], w1[8,3,1,1])
        b = GridSample<padding_mode="{padding}">(a, grid[2,3,5,2])
        y = Conv(b, w2[4,8,1,1])
        """,
        opset=max(opset, 16),
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_grid_sample_of_onnx_runtime() -> None:
    """The older operator of the same name."""
    model = build("""
        a = Conv(x[2,3,4,4], w1[8,3,1,1])
        b = com.microsoft.GridSample(a, grid[2,3,5,2])
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


CORNERS = "rois[3,4]{0.0,0.0,3.0,3.0,1.0,1.0,4.0,5.0,2.0,0.0,5.0,4.0}"
REGIONS = [
    (
        f"RoiAlign<output_height=2, output_width=2>(a, {CORNERS}, at{{0,1,0}})",
        10,
    ),
    (
        f"RoiAlign<output_height=2, output_width=2>(a, {CORNERS}, at{{0,1,0}})",
        16,
    ),
    (
        f"RoiAlign<output_height=2, output_width=2>(a, {CORNERS}, at{{0,1,0}})",
        22,
    ),
    ("MaxRoiPool<pooled_shape=[2,2]>(a, rois[3,5]{0.0,0.0,0.0,2.0,2.0,1.0,1.0,1.0,3.0,3.0})", 13),
    ("com.microsoft.CropAndResize(a, rois[3,4], int32 at{0,1,0}, int32 size{2,2})", 13),
]


@pytest.mark.parametrize(("regions", "opset"), REGIONS)
def test_regions(regions: str, opset: int) -> None:
    """Channels are read in regions, each by itself."""
    model = build(
        f"""
        a = Conv(x[2,3,6,6], w1[8,3,1,1])
        b = {regions}
        y = Conv(b, w2[4,8,1,1])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_columns_to_image() -> None:
    """Channels times the places of a block become channels."""
    model = build("""
        a = MatMul(w1[24,3], x[N,3,9])
        b = Col2Im(a, image{4,4}, block{2,2})
        y = Conv(b, w2[4,6,1,1])
    """)
    assert_removal_equals_zeroing(model, groups=[6])


def test_columns_to_image_with_places_of_their_own() -> None:
    """The places of a block stay, whatever makes them."""
    model = build("""
        a0 = MatMul(x[N,9,3], w1[3,6])
        a1 = Transpose<perm=[0,2,1]>(a0)
        a = Concat<axis=1>(a1, a1, a1, a1)
        b = Col2Im(a, image{4,4}, block{2,2})
        y = ReduceSum(b)
    """)
    assert_removal_equals_zeroing(model, groups={})


def test_unpooling_freezes_channels() -> None:
    """Places that count through all channels keep them."""
    model = build("""
        a = Conv(x[1,3,4,4], w1[8,3,1,1])
        p, at = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a)
        b = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(p, at)
        y = Conv(b, w2[4,8,1,1])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert reasons(couplings) & {"MaxPool numbers its positions", "MaxUnpool numbers its positions"}


@pytest.mark.parametrize(
    ("dft", "opset"), [("DFT<axis=1>(c)", 17), ("DFT(c, , axis[]{1})", 20), ("DFT(c, , n[]{-3})", 20)]
)
def test_waves_in_time(dft: str, opset: int) -> None:
    """Channels are free where another axis is transformed."""
    model = build(
        f"""
        a = MatMul(x[N,4,5], w1[5,8])
        c = Unsqueeze(a, last{{3}})
        b = {dft}
        t = Transpose<perm=[0,1,3,2]>(b)
        y = MatMul(t, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_waves_over_channels_freeze_them() -> None:
    """Every wave runs over all channels."""
    model = build("""
        a = MatMul(x[N,5], w1[5,8])
        c = Unsqueeze(a, last{2})
        b = DFT<axis=1>(c)
        y = ReduceSum(b)
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "DFT runs over it" in reasons(couplings)


def test_windows_of_a_signal() -> None:
    """Time and frequencies stay; what is made of them is free."""
    model = build("""
        s = STFT(x[N,16], step[]{4}, window[8])
        r = ReduceSum<keepdims=0>(s, last{3})
        h = MatMul(r, w3[5,6])
        y = MatMul(h, w4[6,3])
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize("node", ["Det(m)", "com.microsoft.Inverse(m)"])
def test_of_matrices(node: str) -> None:
    """The axes of a matrix stay; those before are free."""
    model = build(f"""
        a = MatMul(x[N,5], w1[5,8])
        c = Reshape(a, s{{0,8,1,1}})
        d = Mul(c, eye[1,1,3,3]{{1.0,0.1,0.2,0.3,1.0,0.1,0.2,0.1,1.0}})
        m = Add(d, eye)
        e = {node}
        {"f = Identity(e)" if node.startswith("Det") else "f = ReduceSum<keepdims=0>(e, axes{2,3})"}
        y = MatMul(f, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_crop_or_pad_around_the_middle() -> None:
    """Channels are free where others axes are cropped, and stay where they are."""
    space = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = CenterCropPad<axes=[2,3]>(a, size{2,6})
        y = Conv(b, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(space, groups={"a": 8})
    channels = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = CenterCropPad<axes=[1]>(a, size{6})
        y = Conv(b, w2[4,6,1,1])
    """)
    couplings = assert_removal_equals_zeroing(channels, groups={})
    assert "CenterCropPad crops or pads it around its middle" in reasons(couplings)


def test_local_response_normalization_freezes_channels() -> None:
    """A channel is divided by what its neighbours are."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = LRN<size=3>(a)
        y = Conv(b, w2[4,8,1,1])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "LRN adds up neighbouring channels" in reasons(couplings)


@pytest.mark.parametrize(
    ("node", "sizes"),
    [
        ("DeformConv(a, w2[4,8,2,2], o[1,8,3,3])", [8, 4]),
        ("DeformConv<group=2>(a, w2[4,4,2,2], o[1,8,3,3], b[4])", [2, 4, 2]),
        ("DeformConv<offset_group=2>(a, w2[4,8,2,2], o[1,16,3,3], b[4], m[1,8,3,3])", [4, 4]),
    ],
)
def test_convolution_at_places_of_its_own(node: str, sizes: list[int]) -> None:
    """As a convolution; channels that share offsets shrink evenly."""
    model = build(
        f"""
        a = Conv(x[1,3,4,4], w1[8,3,1,1])
        d = {node}
        y = Conv(d, w3[3,4,1,1])
        """,
        opset=22,
    )
    assert_removal_equals_zeroing(model, groups=sizes)


@pytest.mark.parametrize("start", ["CausalConvWithState(", 'CausalConvWithState<activation="silu">('])
@pytest.mark.parametrize("inputs", ["a, w2[8,1,3]", "a, w2[8,1,3], b2[8]", "a, w2[8,1,3], b2[8], past[1,8,2]"])
def test_causal_convolution_with_a_state(inputs: str, start: str) -> None:
    """Each channel by itself, with its part of the state."""
    model = build(
        f"""
        a = Conv(x[1,3,6], w1[8,3,1])
        b, s = {start}{inputs})
        c = Conv(b, w3[4,8,1])
        d = Conv(s, w4[4,8,2])
        y = Add(c, d)
        """,
        opset=27,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})
