"""Operators on quantised tensors: a removed slice of a weight is the zero point, and scales are sliced along."""

from __future__ import annotations

import pytest

from tests.models import build
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, reasons

POINTS = {
    "no zero point": "",
    "one": ", uint8 z[]{119}",
    "one for each channel": ", uint8 z[8]{119,3,250,0,128,128,7,61}",
}


@pytest.mark.parametrize("points", POINTS)
def test_a_weight_behind_its_dequantisation(points: str) -> None:
    """The channels of a quantised weight go with their scales and zero points, and what zero stands for is kept."""
    per_channel = "one for" in points
    scale = "v[8]" if per_channel else "v[]{0.01}"
    model = build(f"""
        w = DequantizeLinear<axis=0>(uint8 w1[8,3,3,3], {scale}{POINTS[points]})
        a = Conv(x[N,3,6,6], w)
        b = Relu(a)
        y = ReduceSum<keepdims=0>(b, over{{1}})
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(("kind", "opset"), [("int8", 10), ("int8", 13), ("int4", 21), ("uint4", 21), ("int16", 21)])
def test_every_type_of_quantised_weight(kind: str, opset: int) -> None:
    """Weights of 4, 8 and 16 bits, an odd number of them left too."""
    model = build(
        f"""
        w = DequantizeLinear({kind} w1[5,9], v[]{{0.1}}, {kind} z[]{{3}})
        a = MatMul(x[N,5], w)
        b = Relu(a)
        u = DequantizeLinear({kind} w2[9,3], v2[]{{0.1}}, {kind} z2[]{{1}})
        y = MatMul(b, u)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 9})


def test_a_weight_of_eight_bit_floats() -> None:
    """Its zero is zero."""
    model = build(
        """
        w = DequantizeLinear<axis=1>(float8e4m3fn w1[5,8], v[8])
        a = MatMul(x[N,5], w)
        y = MatMul(a, w2[8,3])
        """,
        opset=19,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("axis", [0, 1])
def test_a_scale_for_each_block(axis: int) -> None:
    """Along the axis of the blocks whole blocks go, along the other anything does."""
    scales = ("3,8", "12,2")[axis]
    model = build(
        f"""
        a = MatMul(x[N,5], w0[5,12])
        b = Relu(a)
        w = DequantizeLinear<axis={axis}, block_size=4>(int8 w1[12,8], v[{scales}], int8 z[{scales}])
        c = MatMul(b, w)
        y = MatMul(c, w2[8,3])
        """,
        opset=21,
    )
    assert_removal_equals_zeroing(model, groups={"a": 3, "c": 8} if axis == 0 else {"a": 12, "c": 2})


def test_a_last_block_that_is_not_full_freezes() -> None:
    """Where the positions are no whole number of blocks, none goes."""
    model = build(
        """
        a = MatMul(x[N,5], w0[5,10])
        w = DequantizeLinear<axis=0, block_size=4>(int8 w1[10,3], v[3,3])
        y = MatMul(a, w)
        """,
        opset=21,
    )
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert any("no whole number of 3 blocks" in reason for reason in reasons(couplings))


@pytest.mark.parametrize(
    ("chain", "weight"),
    [
        ("d = DequantizeLinear({w}, v[]{0.01}, z[]{9})\n u = Transpose(d)", "uint8 w2[3,8]"),
        ("d = Transpose({w})\n u = DequantizeLinear(d, v[]{0.01}, uint8 z[]{9})", "uint8 w2[3,8]"),
        ("e = Identity({w})\n d = Transpose(e)\n u = DequantizeLinear(d, v[]{0.01}, uint8 z[]{9})", "uint8 w2[3,8]"),
        ("d = DequantizeLinear<axis=1>({w}, v[8], uint8 z[8])\n u = Reshape(d, s{8,3})", "uint8 w2[1,8,3]"),
        ("d = DequantizeLinear<axis=0>({w}, v[3], uint8 z[3])\n u = Transpose(d)", "uint8 w2[3,8]"),
        ("d = QuantizeLinear({w}, v[]{0.01}, uint8 z[]{9})\n u = DequantizeLinear(d, v, z)", "w2[8,3]"),
    ],
)
def test_chains_between_a_weight_and_its_layer(chain: str, weight: str) -> None:
    """Nodes that move numbers may stand before and behind the dequantisation."""
    chain = chain.replace("{w}", weight).replace(", z[]", ", uint8 z[]")
    model = build(f"a = MatMul(x[N,5], w1[5,8])\n b = Relu(a)\n {chain}\n y = MatMul(b, u)")
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_zero_points_for_each_channel_behind_a_transposition() -> None:
    """Where it takes more than a number to say what zero stands for before the axes move, the group is inexact."""
    model = build("""
        d = Transpose(uint8 w1[8,5])
        w = DequantizeLinear<axis=1>(d, v[8], uint8 z[8])
        a = MatMul(x[N,5], w)
        y = ReduceSum<keepdims=0>(a, over{1})
    """)
    assert_inexact(model, {"a": 8})


def test_unrelated_layers_share_scales_and_zero_points() -> None:
    """Scales and zero points that exporters store once couple nothing."""
    model = build("""
        w = DequantizeLinear<axis=1>(int8 w1[5,8], v[8], int8 z[8])
        a = MatMul(x[N,5], w)
        u = DequantizeLinear<axis=1>(int8 w2[8,8], v, z)
        b = MatMul(a, u)
        y = MatMul(b, w3[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8, "b": 8})


@pytest.mark.parametrize("activation", ["c = Relu(a)", "c = LeakyRelu(a)", "s = Sigmoid(a)\n c = Mul(a, s)"])
def test_activations_between_pairs_of_nodes(activation: str) -> None:
    """Quantisation keeps zero, so what is zero before it is zero behind it; the bias counts in products of scales."""
    model = build(f"""
        w = DequantizeLinear<axis=0>(int8 w1[8,3,3,3], v[8])
        b = DequantizeLinear<axis=0>(int32 b1[8]{{3,-1,4,1,-5,9,2,6}}, vb[8])
        a = Conv(x[N,3,6,6], w, b)
        {activation}
        d = QuantizeLinear(c, s1[]{{0.5}}, uint8 z1[]{{20}})
        e = DequantizeLinear(d, s1, z1)
        y = Conv(e, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(
    "node",
    [
        "f = MaxPool<kernel_shape=[2,2]>(d)",
        "f = Transpose<perm=[0,1,3,2]>(d)",
        "f = Concat<axis=1>(d, d)",
        "f, g = Split<axis=2>(d, s{3,3})",
        "f = Slice(d, from{0}, to{3}, axes{2})",
        "f = Gather<axis=2>(d, i{1,3,0})",
        "f = Identity(d)",
        'f = Resize<mode="nearest">(d, , k[]{1.0,1.0,2.0,2.0})',
        "f = Pad(d, p{0,0,1,1,0,0,1,1}, uint8 v20[]{20})",
    ],
)
def test_quantised_numbers_that_move(node: str) -> None:
    """The zero point stands for zero behind them too."""
    node = node.replace("k[]{", "k{")
    model = build(f"""
        a = Conv(x[N,3,6,6], w1[8,3,1,1])
        d = QuantizeLinear(a, s1[]{{0.05}}, uint8 z1[]{{20}})
        {node}
        e = DequantizeLinear(f, s1, z1)
        y = ReduceSum<keepdims=0>(e, over{{1}})
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(
    "node",
    [
        "f = Pad(d, p{0,0,1,1,0,0,1,1})",
        "g = Cast<to=6>(d)\n h = Mul(g, int32 k[]{2})\n f = Cast<to=2>(h)",
        "f = DequantizeLinear(d, s1, uint8 other[]{21})\n",
    ],
)
def test_quantised_numbers_that_are_reckoned_with(node: str) -> None:
    """Where something else than the zero point comes to stand in its place, the group is inexact."""
    last = "e = Abs(f)" if "other" in node else "e = DequantizeLinear(f, s1, z1)"
    model = build(f"""
        a = Conv(x[N,3,6,6], w1[8,3,1,1])
        d = QuantizeLinear(a, s1[]{{0.05}}, uint8 z1[]{{20}})
        {node}
        {last}
        y = ReduceSum<keepdims=0>(e, over{{1}})
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("group", [1, 2, 8])
def test_quantised_convolution(group: int) -> None:
    """QLinearConv in groups and depthwise, a scale for each channel, with a bias."""
    model = build(f"""
        q = QuantizeLinear(x[N,3,6,6], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = QLinearConv(q, sx, zx, int8 w1[8,3,3,3], v1[8], int8 z1[8]{{0}}, s2[]{{0.9}}, uint8 z2[]{{117}},
            int32 b1[8]{{300,-100,400,100,-500,900,200,600}})
        b = QLinearConv<group={group}>(a, s2, z2, uint8 w2[8,{8 // group},1,1], s3[]{{0.01}}, uint8 z3[]{{100}},
            s4[]{{0.5}}, uint8 z4[]{{7}})
        c = DequantizeLinear(b, s4, z4)
        y = Conv(c, w4[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model)


def test_quantised_convolution_with_channels_last() -> None:
    """ONNX Runtime's form for processors that like it."""
    model = build("""
        q = QuantizeLinear(x[N,6,6,3], sx[]{0.04}, int8 zx[]{3})
        a = com.microsoft.QLinearConv<channels_last=1>(q, sx, zx, int8 w1[8,3,3,3], v1[8], int8 z1[]{0},
            s2[]{0.9}, int8 z2[]{17}, int32 b1[8]{300,-100,400,100,-500,900,200,600})
        b = com.microsoft.QLinearAveragePool<channels_last=1, kernel_shape=[2,2]>(a, s2, z2, s2, z2)
        c = com.microsoft.QLinearConv<channels_last=1>(b, s2, z2, int8 w2[4,8,1,1], s3[]{0.01}, z1, s4[]{0.5}, z2)
        y = DequantizeLinear(c, s4, z2)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("points", ["", ", uint8 zx, uint8 z1[]{90}"])
def test_integer_convolution(points: str) -> None:
    """ConvInteger, of a tensor with a fixed scale."""
    points = points.replace("uint8 zx", "zx")
    model = build(f"""
        q = QuantizeLinear(x[N,3,6,6], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = ConvInteger(q, uint8 w1[8,3,3,3]{points})
        b = Cast<to=1>(a)
        c = Mul(b, v[8,1,1])
        d = Relu(c)
        y = Conv(d, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_a_convolution_quantised_as_it_runs() -> None:
    """Zeros do not widen the range of what DynamicQuantizeLinear sees."""
    model = build("""
        q1, sx, zx = DynamicQuantizeLinear(x[1,3,6,6])
        a = ConvInteger(q1, uint8 w1[8,3,3,3], zx, uint8 z1[]{90})
        b = Cast<to=1>(a)
        m = Mul(sx, v1[]{0.01})
        c = Mul(b, m)
        d = Relu(c)
        q2, s2, z2 = DynamicQuantizeLinear(d)
        e = ConvInteger(q2, uint8 w2[4,8,1,1], z2, uint8 z3[]{100})
        f = Cast<to=1>(e)
        y = Mul(f, s2)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_a_range_of_numbers_that_are_not_zero() -> None:
    """What a removed channel adds to the range of a dynamic quantisation is missed."""
    model = build("""
        a = MatMul(x[1,5], w1[5,8])
        b = Exp(a)
        q, s, z = DynamicQuantizeLinear(b)
        c = MatMulInteger(q, int8 w2[8,3], z)
        d = Cast<to=1>(c)
        y = Mul(d, s)
    """)
    couplings = assert_removal_equals_zeroing(model, groups={}, inexact={"a": 8})
    assert "DynamicQuantizeLinear sums over it" in str(couplings.groups[0].inexact)


@pytest.mark.parametrize("points", ["", ", zx, uint8 z1[]{90}", ", zx, uint8 z1[8]"])
def test_integer_matmul(points: str) -> None:
    """MatMulInteger with a zero point for all columns or for each."""
    model = build(f"""
        q = QuantizeLinear(x[N,5], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = MatMulInteger(q, uint8 w1[5,8]{points})
        b = Cast<to=1>(a)
        c = Mul(b, v[8])
        d = Relu(c)
        y = MatMul(d, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("columns", ["s1[]{0.01}, uint8 z1[]{90}", "v1[8], uint8 z1[8]"])
def test_quantised_matmul(columns: str) -> None:
    """QLinearMatMul with one scale for all columns or one for each."""
    model = build(f"""
        q = QuantizeLinear(x[N,5], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = QLinearMatMul(q, sx, zx, uint8 w1[5,8], {columns}, s2[]{{1.5}}, uint8 z2[]{{100}})
        b = QLinearMatMul(a, s2, z2, uint8 w2[8,3], s3[]{{0.01}}, uint8 z3[]{{99}}, s4[]{{2.0}}, uint8 z4[]{{100}})
        y = DequantizeLinear(b, s4, z4)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("bias", ["", ", b1[8]"])
def test_matmul_of_integers_into_floats(bias: str) -> None:
    """What ONNX Runtime makes of a MatMulInteger and the nodes behind it."""
    model = build(f"""
        q, sx, zx = DynamicQuantizeLinear(x[1,5])
        a = com.microsoft.MatMulIntegerToFloat(q, uint8 w1[5,8], sx, v1[8], zx, uint8 z1[8]{bias})
        b = Relu(a)
        y = com.microsoft.DynamicQuantizeMatMul(b, int8 w2[8,3], v2[3], int8 z2[3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_matmul_that_quantises_as_it_runs() -> None:
    """DynamicQuantizeMatMul with a bias, one behind another."""
    model = build("""
        a = com.microsoft.DynamicQuantizeMatMul(x[4,5], uint8 w1[5,8], v1[]{0.01}, uint8 z1[]{90}, b1[8])
        b = Relu(a)
        y = com.microsoft.DynamicQuantizeMatMul(b, uint8 w2[8,3], v2[]{0.01}, uint8 z2[]{80}, b2[3])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("columns", ["s1[]{0.01}, uint8 z1[]{90}", "v1[8], uint8 z1[8]"])
def test_quantised_gemm(transposed: int, columns: str) -> None:
    """QGemm into quantised numbers and into floats."""
    sizes = "8,5" if transposed else "5,8"
    model = build(f"""
        q = QuantizeLinear(x[N,5], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = com.microsoft.QGemm<transB={transposed}>(q, sx, zx, uint8 w1[{sizes}], {columns},
            int32 b1[8]{{30,-10,40,10,-50,90,20,60}}, s2[]{{1.5}}, uint8 z2[]{{100}})
        y = com.microsoft.QGemm(a, s2, z2, uint8 w2[8,3], s3[]{{0.01}}, uint8 z3[]{{99}})
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(
    ("node", "exact"),
    [
        ("b = com.microsoft.QLinearAdd(a, s2, z2, a, s2, z2, s3[]{0.1}, z3[]{90})", True),
        ("b = com.microsoft.QLinearAdd(a, s2, z2, o[1,8], so[]{0.1}, zo[]{77}, s3[]{0.1}, z3[]{90})", True),
        ("b = com.microsoft.QLinearMul(a, s2, z2, o[1,8], so[]{0.1}, zo[]{77}, s3[]{0.1}, z3[]{90})", True),
        ("b = com.microsoft.QLinearLeakyRelu(a, s2, z2, s3[]{0.1}, z3[]{90})", True),
        ("b = com.microsoft.QLinearSigmoid(a, s2, z2, s3[]{0.01}, z3[]{0})", False),
        ("b = com.microsoft.QLinearSigmoid(a, s2, z2, s3[]{0.004}, z3[]{128})", False),
        (
            "c = com.microsoft.QLinearSigmoid(a, s2, z2, s4[]{0.01}, z4[]{0})\n"
            " b = com.microsoft.QLinearMul(a, s2, z2, c, s4, z4, s3[]{0.1}, z3[]{90})",
            True,
        ),
        ("b = com.microsoft.QLinearConcat<axis=1>(s3[]{0.1}, z3[]{90}, a, s2, z2, a, s2, z2)", True),
        (
            "b = com.microsoft.QLinearWhere(bool t[1,8]{1,0,0,1,1,0,1,0}, a, s2, z2, o[1,8], so[]{0.1}, zo[]{77},"
            " s3[]{0.1}, z3[]{90})",
            True,
        ),
    ],
)
def test_quantised_elementwise(node: str, exact: bool) -> None:
    """Each with scales and zero points of its own."""
    for name in ("z3", "zo", "z4", "o"):
        node = node.replace(f" {name}[", f" uint8 {name}[")
    model = build(f"""
        q = QuantizeLinear(x[N,5], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = QLinearMatMul(q, sx, zx, uint8 w1[5,8], s1[]{{0.01}}, uint8 z1[]{{90}}, s2[]{{0.05}}, uint8 z2[]{{100}})
        {node}
        d = DequantizeLinear(b, s3, z3)
        y = ReduceSum<keepdims=0>(d, over{{1}})
    """)
    if exact:
        assert_removal_equals_zeroing(model, groups={"a": 8})
    else:
        assert_inexact(model, {"a": 8})


@pytest.mark.parametrize(
    "node",
    [
        "b = com.microsoft.QLinearGlobalAveragePool(a, s2, z2, s3[]{0.5}, uint8 z3[]{90})",
        "b = com.microsoft.QLinearAveragePool<kernel_shape=[6,6]>(a, s2, z2, s3[]{0.5}, uint8 z3[]{90})",
    ],
)
def test_quantised_means(node: str) -> None:
    """Means over space leave channels apart."""
    model = build(f"""
        q = QuantizeLinear(x[N,3,6,6], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = QLinearConv(q, sx, zx, int8 w1[8,3,1,1], s1[]{{0.01}}, int8 z1[]{{5}}, s2[]{{0.5}}, uint8 z2[]{{100}})
        {node}
        c = DequantizeLinear(b, s3, z3)
        y = Conv(c, w2[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_quantised_softmax() -> None:
    """QLinearSoftmax freezes what it shares out, and leaves other axes alone."""
    model = build("""
        q = QuantizeLinear(x[1,3,4,4], sx[]{0.04}, uint8 zx[]{131})
        a = QLinearConv(q, sx, zx, int8 w1[8,3,1,1], s1[]{0.01}, int8 z1[]{5}, s2[]{0.5}, uint8 z2[]{100})
        b = com.microsoft.QLinearSoftmax<axis=1, opset=13>(a, s2, z2, s3[]{0.004}, uint8 z3[]{0})
        y = DequantizeLinear(b, s3, z3)
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "com.microsoft.QLinearSoftmax shares one out over it" in reasons(couplings)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("per_row", [False, True])
def test_lstm_that_quantises_as_it_runs(per_row: bool, direction: str) -> None:
    """Its hidden units go with the rows of its quantised weights, and with their scales."""
    d, rows = 1 if direction == "forward" else 2, ",24" if per_row else ""
    w, r = (f"s{name}[{d}{rows}]{{0.01,0.02,0.005}}, int8 z{name}[{d}{rows}]{{0}}" for name in "wr")
    model = build(f"""
        a = com.microsoft.DynamicQuantizeLSTM<hidden_size=6, direction="{direction}">(x[4,2,3], int8 w[{d},3,24],
            int8 r[{d},6,24], b[{d},48], , , , , {w}, {r})
        y = ReduceSum<keepdims=0>(a, over{{1,3}})
    """)
    assert_removal_equals_zeroing(model, groups={"a": 6})


def test_lstm_with_other_activations_freezes() -> None:
    """A unit that is not silent counts for the range by which states are quantised."""
    model = build("""
        a = com.microsoft.DynamicQuantizeLSTM<hidden_size=6, activations=["Sigmoid", "Sigmoid", "Sigmoid"]>(x[4,2,3],
            int8 w[1,3,24], int8 r[1,6,24], b[1,48], , , , , vw[1], int8 z[1]{0}, vr[1], int8 zr[1]{0})
        y = ReduceSum<keepdims=0>(a, over{1,3})
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert any("its activations make something of zero" in reason for reason in reasons(couplings))


@pytest.mark.parametrize(
    ("bits", "byte", "points", "sizes"),
    [
        (4, 8, "", {"a": 4, "c": 10}),
        (4, 8, ", uint8 z[20]", {"a": 2, "c": 10}),
        (8, 16, ", uint8 z[40]", {"a": 4, "c": 10}),
        (4, 8, ", z[40]", {"a": 4, "c": 10}),
    ],
)
def test_matmul_with_few_bits(bits: int, byte: int, points: str, sizes: dict[str, int]) -> None:
    """Columns go one by one, what is read in blocks, two at a time where their zero points share a byte."""
    model = build(f"""
        a = MatMul(x[N,5], w0[5,64])
        b = Relu(a)
        c = com.microsoft.MatMulNBits<K=64, N=10, bits={bits}, block_size=16>(b, uint8 w1[10,4,{byte}], v[40]{points})
        d = com.microsoft.MatMulNBits<K=64, N=10, bits={bits}, block_size=16>(b, uint8 w2[10,4,{byte}], v2[40]{points})
        e = Add(c, d)
        y = ReduceSum<keepdims=0>(e, over{{1}})
    """)
    assert_removal_equals_zeroing(model, groups=sizes)


def test_matmul_with_few_bits_and_a_bias() -> None:
    """A last block that is not full freezes what is read; the columns are free."""
    model = build("""
        a = MatMul(x[N,5], w0[5,40])
        b = com.microsoft.MatMulNBits<K=40, N=10, bits=4, block_size=16>(a, uint8 w1[10,3,8], v[30], uint8 z[20], ,
            b1[10])
        y = ReduceSum<keepdims=0>(b, over{1})
    """)
    couplings = assert_removal_equals_zeroing(model, groups={"b": 10})
    assert any("its last block is not full" in reason for reason in reasons(couplings))


@pytest.mark.parametrize(
    "columns", ["s1[]{0.01}, m[2]{5,5}, zx, uint8 z1[]{128}", "v1[24], m[2]{5,5}, zx, uint8 z1[24]"]
)
def test_quantised_attention(columns: str) -> None:
    """Heads go whole, and the widths of queries, keys and values together."""
    columns = columns.replace("m[2]", "int32 m[2]")
    model = build(f"""
        q = QuantizeLinear(x[2,5,6], sx[]{{0.04}}, uint8 zx[]{{131}})
        a = com.microsoft.QAttention<num_heads=2>(q, uint8 w1[6,24], b1[24], sx, {columns})
        y = ReduceSum<keepdims=0>(a, over{{2}})
    """)
    assert_removal_equals_zeroing(model, groups=[2, 4])
