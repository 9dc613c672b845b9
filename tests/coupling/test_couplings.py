"""Which channels go together in the structures that networks are made of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.models import build
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, coupled, reasons


def test_both_branches_of_a_residual_are_one_group() -> None:
    """Whatever is added up has the same channels, along the whole chain of blocks."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Conv<pads=[1,1,1,1]>(a, w2[6,8,3,3])
        c = Conv(b, w3[8,6,1,1])
        d = Add(a, c)
        e = Conv(d, w4[5,8,1,1])
        f = Conv(e, w5[8,5,1,1])
        g = Add(f, d)
        y = Conv(g, w6[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8, "b": 6, "e": 5})


def test_a_shortcut_with_its_own_conv_joins_both() -> None:
    """Where the shortcut is a Conv, its filters and those of the block are one group."""
    model = build("""
        a = Conv<strides=[2,2]>(x[N,3,4,4], w1[8,3,1,1])
        b = Conv<strides=[2,2]>(x, w2[8,3,1,1])
        c = Add(a, b)
        d = LeakyRelu(c)
        y = Conv(d, w3[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_each_part_of_a_concat_is_pruned_alone() -> None:
    """The reader's channels are `a + b`."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[6,3,1,1])
        b = Conv(x, w2[4,3,1,1])
        c = Concat<axis=1>(a, b)
        y = Conv(c, w3[5,10,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 6, "b": 4})


def test_dense_blocks() -> None:
    """Concats of concats: each layer's growth is a group of its own."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[6,3,1,1])
        b = Conv(a, w2[4,6,1,1])
        c = Concat<axis=1>(a, b)
        d = BatchNormalization(c, scale[10], shift[10], mean[10], v1[10])
        e = Conv(d, w3[5,10,1,1])
        f = Concat<axis=1>(c, e)
        y = Conv(f, w4[3,15,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 6, "b": 4, "e": 5})


def test_sums_of_concats_cut_each_other() -> None:
    """`a:6 + b:4` added to `c:4 + d:6` gives parts of 4, 2 and 4."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[6,3,1,1])
        b = Conv(x, w2[4,3,1,1])
        c = Conv(x, w3[4,3,1,1])
        d = Conv(x, w4[6,3,1,1])
        ab = Concat<axis=1>(a, b)
        cd = Concat<axis=1>(c, d)
        s = Add(ab, cd)
        y = Conv(s, w5[3,10,1,1])
    """)
    assert_removal_equals_zeroing(model, groups=[4, 2, 4])


def test_a_channel_that_is_flattened_takes_its_positions_along() -> None:
    """The dense layer reads `C * 16` numbers."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Flatten(a)
        c = Gemm<transB=1>(b, w2[6,128], b2[6])
        y = Gemm<transB=1>(c, w3[4,6], b3[4])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8, "c": 6})
    assert ("w2", 1) in {(place.tensor, place.axis) for place in couplings.group("a").slices}


def test_inverted_bottleneck() -> None:
    """Expansion, depthwise Conv and projection: one group for the width inside."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[4,3,1,1])
        b = Conv(a, w2[8,4,1,1])
        c = Clip(b, low[]{0.0}, high[]{6.0})
        d = Conv<group=8, pads=[1,1,1,1]>(c, w3[8,1,3,3])
        e = Clip(d, low, high)
        f = Conv(e, w4[4,8,1,1])
        g = Add(a, f)
        y = Conv(g, w5[3,4,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 4, "b": 8})


def test_a_grouped_conv_has_three_ways_to_shrink() -> None:
    """Whole groups, or the same position of each group on either side."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[12,3,1,1])
        b = Conv<group=4>(a, w2[8,3,3,3])
        y = Conv(b, w3[5,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups=[4, 3, 2])


def test_channel_shuffle_of_grouped_convs() -> None:
    """ShuffleNet: the shuffle makes the groups of one Conv the positions of the next."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[12,3,1,1])
        b = Conv<group=2>(a, w2[12,6,1,1])
        c = Reshape(b, s1{0,2,6,4,4})
        d = Transpose<perm=[0,2,1,3,4]>(c)
        e = Reshape(d, s2{0,12,4,4})
        f = Conv<group=12>(e, w3[12,1,1,1])
        g = Conv<group=2>(f, w4[12,6,1,1])
        y = Conv(g, w5[4,12,1,1])
    """)
    assert_removal_equals_zeroing(model)


def test_channel_shuffle_of_two_branches() -> None:
    """ShuffleNet V2: both halves of every unit and both branches are one group."""
    unit = """
        {out}a, {out}b = Split<axis=1>({x}, half)
        {out}c = Conv({out}b, {out}w1[8,8,1,1])
        {out}d = Conv<group=8, pads=[1,1,1,1]>({out}c, {out}w2[8,1,3,3])
        {out}e = Conv({out}d, {out}w3[8,8,1,1])
        {out}f = Concat<axis=1>({out}a, {out}e)
        {out}g = Reshape({out}f, split)
        {out}h = Transpose<perm=[0,2,1,3,4]>({out}g)
        {out} = Reshape({out}h, whole)
    """
    model = build(f"""
        l = Conv(x[N,3,4,4], w1[8,3,1,1])
        r = Conv(x, w2[8,3,1,1])
        first = Concat<axis=1>(l, r)
        start = Reshape(first, split{{0,2,8,4,4}})
        swapped = Transpose<perm=[0,2,1,3,4]>(start)
        in = Reshape(swapped, whole{{0,16,4,4}})
        {unit.format(x="in", out="u").replace("half", "half{8,8}")}
        {unit.format(x="u", out="t")}
        y = Conv(t, w9[4,16,1,1])
    """)
    assert_removal_equals_zeroing(model)


def test_repeated_shuffles_whose_factors_do_not_line_up_join_single_positions() -> None:
    """A half of 5 x 2 x 2 channels cuts through a four: positions are joined singly, those alike are groups."""
    unit = """
        {out}l, {out}r = Split<axis=1>({x}, half{{10,10}})
        {out}c = Conv({out}r, {out}w[10,10,1,1])
        {out}f = Concat<axis=1>({out}l, {out}c)
        {out}g = Reshape({out}f, apart{{0,2,10,4,4}})
        {out}h = Transpose<perm=[0,2,1,3,4]>({out}g)
        {out} = Reshape({out}h, whole{{0,20,4,4}})
    """
    model = build(f"""
        a = Conv(x[N,3,4,4], w1[20,3,1,1])
        {unit.format(x="a", out="u")}
        {unit.format(x="u", out="v")}
        {unit.format(x="v", out="t")}
        y = Conv(t, w9[4,20,1,1])
    """)
    couplings = assert_removal_equals_zeroing(model, groups=[2, 2, 5, 10])
    assert "it merges and cuts axes so that positions do not line up" not in reasons(couplings)


SHUFFLED = """
    a = Conv(x[N,3,4,4], w1[12,3,1,1])
    r = Reshape(a, s1{0,2,6,4,4})
    t = Transpose<perm=[0,2,1,3,4]>(r)
    q = Reshape(t, s2{0,12,4,4})
"""
"""Twelve channels of which the shuffle makes six pairs."""


def test_a_cut_through_a_pair_falls_back_to_single_positions() -> None:
    """Five and seven of six pairs: the pair in the middle stands on both sides and stays, the others are free."""
    model = build(f"""
        {SHUFFLED}
        b, c = Split<axis=1>(q, s3{{5,7}})
        d = Conv(b, w2[4,5,1,1])
        e = Conv(c, w3[4,7,1,1])
        y = Add(d, e)
    """)
    assert_removal_equals_zeroing(model, groups=[2, 3])


@pytest.mark.parametrize("seed", range(5))
def test_no_tensor_can_lose_all_its_positions(seed: int) -> None:
    """Where parts are put together again all channels have one reader, yet each part keeps one."""
    model = build(f"""
        {SHUFFLED}
        b, c = Split<axis=1>(q, s3{{5,7}})
        d = MaxPool<kernel_shape=[1,1]>(b)
        e = Concat<axis=1>(d, c)
        y = Conv(e, w2[4,12,1,1])
    """)
    assert_removal_equals_zeroing(model, groups=[2, 3], seed=seed)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bounds", [(0, -1), (1, 99), (-11, 99), (0, -3)])
def test_bounds_that_count_from_the_end(bounds: tuple[int, int], seed: int) -> None:
    """Also when nothing is left behind the cut, which no negative bound can say."""
    start, end = bounds
    left = len(range(12)[start:end])
    model = build(f"""
        {SHUFFLED}
        b = Slice(q, start{{{start}}}, end{{{end}}}, at{{1}})
        y = Conv(b, w2[4,{left},1,1])
    """)
    assert_removal_equals_zeroing(model, seed=seed)


ATTENTION = """
    q0 = Reshape(q, {heads})
    k0 = Reshape(k, {heads})
    v0 = Reshape(v, {heads})
    qh = Transpose<perm=[0,2,1,3]>(q0)
    kh = Transpose<perm=[0,2,3,1]>(k0)
    vh = Transpose<perm=[0,2,1,3]>(v0)
    scores = MatMul(qh, kh)
    scaled = Mul(scores, scale[]{{0.5}})
    shares = Softmax(scaled)
    mixed = MatMul(shares, vh)
    back = Transpose<perm=[0,2,1,3]>(mixed)
    flat = Reshape(back, {flat})
    y = MatMul(flat, wo[{width},5])
"""


def test_attention_with_separate_projections() -> None:
    """Three groups: the heads, the width of q and k, and the width of v."""
    model = build(
        """
        q = MatMul(x[N,7,5], wq[5,12])
        k = MatMul(x, wk[5,12])
        v = MatMul(x, wv[5,12])
        """
        + ATTENTION.format(heads="sh{0,0,3,4}", flat="sf{0,0,12}", width=12)
    )
    assert_removal_equals_zeroing(model, groups=[3, 4, 4])


def test_attention_with_biases_and_another_width_of_v() -> None:
    """Biases of the projections go along; v may be wider than q and k."""
    model = build(
        """
        q1 = MatMul(x[N,7,5], wq[5,12])
        q = Add(q1, bq[12])
        k1 = MatMul(x, wk[5,12])
        k = Add(k1, bk[12])
        v1 = MatMul(x, wv[5,18])
        v = Add(v1, bv[18])
        """
        + ATTENTION.format(heads="sh{0,0,3,-1}", flat="sf{0,0,-1}", width=18)
    )
    assert_removal_equals_zeroing(model, groups=[3, 4, 6])


def test_attention_with_one_packed_projection_split_in_three() -> None:
    """A Split gives q, k and v widths of their own."""
    model = build(
        """
        p = MatMul(x[N,7,5], wp[5,36])
        q, k, v = Split<axis=2>(p, s{12,12,12})
        """
        + ATTENTION.format(heads="sh{0,0,3,4}", flat="sf{0,0,12}", width=12)
    )
    assert_removal_equals_zeroing(model, groups=[3, 4, 4])


def test_attention_with_one_packed_projection_in_five_axes() -> None:
    """One Reshape to (3, heads, d) holds all three at one width: two groups."""
    model = build("""
        p = MatMul(x[N,7,5], wp[5,36])
        packed = Reshape(p, s{0,0,3,3,4})
        turned = Transpose<perm=[2,0,3,1,4]>(packed)
        qh = Gather<axis=0>(turned, zero[]{0})
        kh = Gather<axis=0>(turned, one[]{1})
        vh = Gather<axis=0>(turned, two[]{2})
        kt = Transpose<perm=[0,1,3,2]>(kh)
        scores = MatMul(qh, kt)
        shares = Softmax(scores)
        mixed = MatMul(shares, vh)
        back = Transpose<perm=[0,2,1,3]>(mixed)
        flat = Reshape(back, sf{0,0,12})
        y = MatMul(flat, wo[12,5])
    """)
    assert_removal_equals_zeroing(model, groups=[3, 4])


def test_attention_of_dynamic_batch_and_length() -> None:
    """The shapes of all Reshapes are put together from batch and length, and batch and heads are merged."""
    model = build("""
        q = MatMul(x[N,S,5], wq[5,12])
        k = MatMul(x, wk[5,12])
        v = MatMul(x, wv[5,12])
        all = Shape(x)
        n = Gather(all, zero[]{0})
        s = Gather(all, one[]{1})
        n1 = Unsqueeze(n, zero1{0})
        s1 = Unsqueeze(s, zero1)
        apart = Concat<axis=0>(n1, s1, three{3}, four{4})
        heads = Mul(n1, three)
        merged = Concat<axis=0>(heads, s1, four)
        q0 = Reshape(q, apart)
        k0 = Reshape(k, apart)
        v0 = Reshape(v, apart)
        q2 = Transpose<perm=[0,2,1,3]>(q0)
        k2 = Transpose<perm=[0,2,1,3]>(k0)
        v2 = Transpose<perm=[0,2,1,3]>(v0)
        qh = Reshape(q2, merged)
        kh = Reshape(k2, merged)
        vh = Reshape(v2, merged)
        kt = Transpose<perm=[0,2,1]>(kh)
        scores = MatMul(qh, kt)
        shares = Softmax(scores)
        mixed = MatMul(shares, vh)
        headed = Concat<axis=0>(n1, three, s1, four)
        m0 = Reshape(mixed, headed)
        back = Transpose<perm=[0,2,1,3]>(m0)
        whole = Concat<axis=0>(n1, s1, twelve{12})
        flat = Reshape(back, whole)
        y = MatMul(flat, wo[12,5])
    """)
    assert_removal_equals_zeroing(model, groups=[3, 4, 4])


def test_the_scale_of_attention_keeps_its_value() -> None:
    """A scale that is computed from the width of a head stays what it was in training."""
    model = build("""
        q = MatMul(x[N,7,5], wq[5,8])
        k = MatMul(x, wk[5,8])
        all = Shape(q)
        width = Gather(all, two[]{2})
        number = Cast<to=1>(width)
        root = Sqrt(number)
        kt = Transpose<perm=[0,2,1]>(k)
        scores = MatMul(q, kt)
        scaled = Div(scores, root)
        y = Softmax(scaled)
    """)
    assert_removal_equals_zeroing(model, groups={"q": 8})


def test_grouped_query_attention() -> None:
    """Keys and values repeated for several heads: heads are `kv heads * repeat`."""
    model = build("""
        q = MatMul(x[N,7,5], wq[5,24])
        k = MatMul(x, wk[5,8])
        v = MatMul(x, wv[5,8])
        q0 = Reshape(q, s1{0,0,6,4})
        k0 = Reshape(k, s2{0,0,2,4})
        v0 = Reshape(v, s2)
        qh = Transpose<perm=[0,2,1,3]>(q0)
        k1 = Transpose<perm=[0,2,1,3]>(k0)
        v1 = Transpose<perm=[0,2,1,3]>(v0)
        k2 = Unsqueeze(k1, at{2})
        v2 = Unsqueeze(v1, at)
        k3 = Expand(k2, s3{1,2,3,7,4})
        v3 = Expand(v2, s3)
        kh = Reshape(k3, s4{0,6,7,4})
        vh = Reshape(v3, s4)
        kt = Transpose<perm=[0,1,3,2]>(kh)
        scores = MatMul(qh, kt)
        shares = Softmax(scores)
        mixed = MatMul(shares, vh)
        back = Transpose<perm=[0,2,1,3]>(mixed)
        flat = Reshape(back, s5{0,0,24})
        y = MatMul(flat, wo[24,5])
    """)
    assert_removal_equals_zeroing(model, groups=[2, 3, 4, 4])


def test_rotary_halves_are_one_group() -> None:
    """Half of a head is negated and swapped: both halves lose the same positions, and so do the tables."""
    model = build("""
        q = MatMul(x[N,7,5], wq[5,8])
        k = MatMul(x, wk[5,8])
        first = Slice(q, zero{0}, half{4}, last{-1})
        second = Slice(q, half, end{9223372036854775807}, last)
        minus = Neg(second)
        turned = Concat<axis=-1>(minus, first)
        c = Mul(q, cosine[7,8])
        s = Mul(turned, sine[7,8])
        r = Add(c, s)
        kt = Transpose<perm=[0,2,1]>(k)
        y = MatMul(r, kt)
    """)
    couplings = assert_removal_equals_zeroing(model, groups=[4])
    assert {place.tensor for place in couplings.groups[0].slices} == {"wq", "wk", "cosine", "sine"}


def test_squeeze_and_excite() -> None:
    """The gate has the block's channels, its inner width is a group."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = GlobalAveragePool(a)
        c = Conv(b, w2[4,8,1,1], b2[4])
        d = LeakyRelu(c)
        e = Conv(d, w3[8,4,1,1], b3[8])
        f = Sigmoid(e)
        g = Mul(a, f)
        y = Conv(g, w4[3,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8, "c": 4})


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_network(kind: str, gates: int) -> None:
    """Rows of the weights are `gates * hidden`."""
    model = build(f"""
        e = Gather(table[11,5], int64 x[7,N])
        h, last = {kind}<hidden_size=6>(e, w[1,{6 * gates},5], r[1,{6 * gates},6], b[1,{12 * gates}])
        s = Squeeze(last, zero{{0}})
        y = Gemm<transB=1>(s, wo[4,6], bo[4])
    """)
    assert_removal_equals_zeroing(model, groups={"e": 5, "h": 6})


def test_u_net() -> None:
    """A skip is read together with what comes up from below, each with its own channels."""
    model = build("""
        a = Conv<pads=[1,1,1,1]>(x[N,3,8,8], w1[6,3,3,3], b1[6])
        a2 = LeakyRelu(a)
        down = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a2)
        b = Conv<pads=[1,1,1,1]>(down, w2[10,6,3,3], b2[10])
        b2x = LeakyRelu(b)
        up = ConvTranspose<strides=[2,2]>(b2x, w3[10,4,2,2], b3[4])
        both = Concat<axis=1>(a2, up)
        c = Conv<pads=[1,1,1,1]>(both, w4[5,10,3,3])
        y = Conv(c, w5[2,5,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 6, "b": 10, "up": 4, "c": 5})


def test_zero_padded_shortcut() -> None:
    """The block's channels are `p + C + p`: what the shortcut has, and what was padded on either side."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[6,3,1,1])
        b = Conv<strides=[2,2]>(a, w2[10,6,1,1])
        small = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a)
        padded = Pad(small, pads{0,2,0,0,0,2,0,0})
        c = Add(b, padded)
        d = LeakyRelu(c)
        y = Conv(d, w3[4,10,1,1])
    """)
    assert_removal_equals_zeroing(model, groups=[2, 6, 2])


def test_zeros_of_a_padded_shortcut_stay_zeros() -> None:
    """Padding is zero, so a product of activations may sum over what was padded."""
    model = build("""
        a = MatMul(x[5,3], w1[3,6])
        b = MatMul(x, w2[3,10])
        padded = Pad(a, pads{0,2,0,2})
        c = Add(b, padded)
        t = Transpose(c)
        y = MatMul(c, t)
    """)
    assert_removal_equals_zeroing(model, groups=[2, 6, 2])


def test_group_normalization_written_out() -> None:
    """Reshape to groups, InstanceNormalization, and back: whole groups may go, channels in a group are inexact."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[12,3,1,1])
        all = Shape(a)
        b = Reshape(a, s{0,3,-1})
        c = InstanceNormalization(b, ones[3]{1.0}, zeros[3]{0.0})
        d = Reshape(c, all)
        e = Mul(d, scale[12,1,1])
        f = Add(e, shift[12,1,1])
        y = Conv(f, w2[4,12,1,1])
    """)
    assert_removal_equals_zeroing(model, groups=[3], inexact=[4])


def test_tied_embedding_and_head_are_one_group() -> None:
    """One table is looked up first and multiplied with last: its width is one group."""
    model = build("""
        a = Gather(table[160,8], int64 x[N,4])
        b = MatMul(a, w1[8,6])
        c = LeakyRelu(b)
        d = MatMul(c, w2[6,8])
        t = Transpose(table)
        y = MatMul(d, t)
    """)
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8, "b": 6})
    assert {place.tensor for place in couplings.group("a").slices} == {"table", "w1", "w2"}


def test_a_bias_that_unrelated_layers_share_couples_nothing() -> None:
    """An exporter stores equal biases once; each layer gets its own as soon as they differ."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1], b[8])
        b1 = LeakyRelu(a)
        c = Conv(b1, w2[8,8,1,1], b)
        d = LeakyRelu(c)
        y = Conv(d, w3[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8, "c": 8})


def test_a_shape_that_unrelated_layers_share_couples_nothing() -> None:
    """A stored shape is split per use as soon as the uses need different numbers."""
    model = build("""
        a = MatMul(x[N,5], w1[5,24])
        b = Reshape(a, s{-1,6,4})
        c = MatMul(x, w2[5,24])
        d = Reshape(c, s)
        e = ReduceSum(b, axes{1})
        f = ReduceSum(d, axes)
        y = MatMul(e, w3[4,3])
        y2 = MatMul(f, w4[4,3])
    """)
    assert_removal_equals_zeroing(model, groups=[6, 4, 6, 4])


def test_mixture_by_gates_shares_no_channels() -> None:
    """Experts stacked in one weight: the experts and the width are groups."""
    model = build("""
        g0 = MatMul(x[N,5], wg[5,4])
        g = Sigmoid(g0)
        e = Einsum<equation="ni,eio->neo">(x, we[4,5,6])
        g1 = Unsqueeze(g, at{2})
        m = Mul(e, g1)
        s = ReduceSum<keepdims=0>(m, over{1})
        y = MatMul(s, wo[6,3])
    """)
    assert_removal_equals_zeroing(model, groups=[4, 6])


def test_a_sigmoid_makes_a_product_of_activations_inexact() -> None:
    """A zeroed channel comes out of a sigmoid as one half; weights hide that, activations do not."""
    model = build("""
        a = MatMul(x[N,7,5], w1[5,8])
        b = Sigmoid(a)
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(b, t)
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("product", ["MatMul(a, s)", "Gemm(a, s, zero[]{0.0})", 'Einsum<equation="ni,io->no">(a, s)'])
def test_zeros_that_are_summed_over_make_no_zeros(product: str) -> None:
    """Attention between channels: those that go in are zero, those that come out are not."""
    model = build(f"""
        a = MatMul(x[5,3], w1[3,8])
        t = Transpose(a)
        gram = MatMul(t, a)
        s = Sigmoid(gram)
        b = {product}
        bt = Transpose(b)
        y = MatMul(b, bt)
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("norm", ["LayerNormalization(a, scale[8], shift[8])", "ReduceMean<keepdims=1>(a, axes{-1})"])
def test_a_mean_over_channels_is_inexact(norm: str) -> None:
    """The mean depends on how many channels there are."""
    model = build(f"""
        a = MatMul(x[N,7,5], w1[5,8])
        b = {norm}
        c = Sub(a, b)
        y = MatMul(c, w2[8,3])
    """)
    couplings = assert_inexact(model, {"a": 8})
    assert "takes a mean over it" in couplings.groups[0].inexact.text


def test_transformer_block() -> None:
    """The residual stream is inexact behind LayerNormalization, heads, widths and the hidden layer are exact."""
    model = build(
        """
        e = MatMul(x[N,7,5], we[5,8])
        n = LayerNormalization(e, scale[8], shift[8])
        q = MatMul(n, wq[8,12])
        k = MatMul(n, wk[8,12])
        v = MatMul(n, wv[8,12])
        q0 = Reshape(q, sh{0,0,3,4})
        k0 = Reshape(k, sh)
        v0 = Reshape(v, sh)
        qh = Transpose<perm=[0,2,1,3]>(q0)
        kh = Transpose<perm=[0,2,3,1]>(k0)
        vh = Transpose<perm=[0,2,1,3]>(v0)
        scores = MatMul(qh, kh)
        shares = Softmax(scores)
        mixed = MatMul(shares, vh)
        back = Transpose<perm=[0,2,1,3]>(mixed)
        flat = Reshape(back, sf{0,0,12})
        o = MatMul(flat, wo[12,8])
        r = Add(e, o)
        n2 = LayerNormalization(r, scale2[8], shift2[8])
        h = MatMul(n2, w1[8,16])
        g = Gelu(h)
        p = MatMul(g, w2[16,8])
        r2 = Add(r, p)
        y = MatMul(r2, w3[8,4])
    """,
        opset=20,
    )
    assert_removal_equals_zeroing(model, groups=[3, 4, 4, 16], inexact={"e": 8})


def test_softmax_over_channels_freezes_them() -> None:
    """Shares that add up to one need all channels."""
    model = build("""
        a = MatMul(x[N,5], w1[5,8])
        b = Softmax<axis=-1>(a)
        y = MatMul(b, w2[8,3])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "Softmax shares one out over it" in reasons(couplings)


def test_channels_of_the_models_interface_stay() -> None:
    """What the model takes and gives is not pruned, and the report says why."""
    model = build("""
        a = MatMul(x[N,5], w1[5,8])
        y = MatMul(a, w2[8,3])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8})
    assert reasons(couplings) == {"it is an axis of the model's input 'x'", "it is an axis of the model's output 'y'"}


def test_a_table_cut_at_a_dynamic_length_stays_whole() -> None:
    """What lies beyond the length of the calibration data is not free: other data are longer."""
    couplings = coupled(
        build(
            """
            sizes = Shape(x[N,T,8])
            length = Slice(sizes, k1{1}, k2{2})
            part = Slice(table[1,30,8], k0{0}, length, ax{1})
            a = Add(x, part)
            b = MatMul(a, w1[8,6])
            y = MatMul(b, w2[6,4])
            """
        )
    )
    assert [group.size for group in couplings.groups] == [6]
    assert "its positions move with a dynamic size" in reasons(couplings)


def test_a_width_that_the_output_tells_stays() -> None:
    """A model that gives out the shape of a layer keeps its width."""
    couplings = coupled(build("a = MatMul(x[N,8], w1[8,6])\n y = MatMul(a, w2[6,4])\n ys = Shape(a)"))
    assert not couplings.groups


@pytest.mark.parametrize("taken", [True, False])
def test_a_width_that_a_body_reads_as_a_number_keeps_its_value(taken: bool) -> None:
    """The branch of an If multiplies by a width, although no input of the node tells so: the number stays."""
    scalar = onnx.helper.make_tensor_value_info
    then = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["m", "s"], ["t"])], "then", [], [scalar("t", onnx.TensorProto.FLOAT, None)]
    )
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["m"], ["e"])], "other", [], [scalar("e", onnx.TensorProto.FLOAT, None)]
    )
    model = build(
        """
        a = MatMul(x[N,8], w1[8,6])
        m = MatMul(a, w2[6,4])
        sizes = Shape(a)
        width = Gather(sizes, k1[]{1})
        s = Cast<to=1>(width)
        y = Identity(m)
        """
    )
    branch = onnx.helper.make_node("If", ["taken"], ["y"], then_branch=then, else_branch=other)
    model.graph.node[-1].CopyFrom(branch)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(taken), "taken"))
    assert_removal_equals_zeroing(model, groups={"a": 6})
