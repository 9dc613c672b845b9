"""Sizes that no constant factor mends are computed once more on the old sizes."""

from __future__ import annotations

from tests.models import build
from tests.oracle import assert_removal_equals_zeroing

COUNTS = """
    a = Conv(x[N,3,6,6], w1[8,3,1,1])
    sizes = Shape(a)
    n = Gather(sizes, k0[]{0})
    c = Gather(sizes, k1[]{1})
"""


def test_a_number_made_of_a_sum_of_sizes_keeps_its_value() -> None:
    """N + C scales the result: it stays what it was although C shrinks and N is dynamic."""
    assert_removal_equals_zeroing(
        build(
            COUNTS
            + """
            total = Add(n, c)
            scale = Cast<to=1>(total)
            b = Mul(a, scale)
            y = Conv(b, w2[4,8,1,1])
            """
        ),
        groups=[8],
    )


def test_a_number_made_of_several_steps_keeps_its_value() -> None:
    """sqrt(N * C + N) is computed from the old C."""
    assert_removal_equals_zeroing(
        build(
            COUNTS
            + """
            product = Mul(n, c)
            total = Add(product, n)
            number = Cast<to=1>(total)
            scale = Sqrt(number)
            b = Div(a, scale)
            y = Conv(b, w2[4,8,1,1])
            """
        ),
        groups=[8],
    )


def test_a_shape_made_of_a_sum_follows_the_new_width() -> None:
    """A Reshape to (N, C * 36) where C * 36 is written as (N + C) * 36 - N * 36."""
    assert_removal_equals_zeroing(
        build(
            COUNTS
            + """
            both = Add(n, c)
            large = Mul(both, k36[]{36})
            less = Mul(n, k36b[]{36})
            flat = Sub(large, less)
            first = Unsqueeze(n, ax0{0})
            second = Unsqueeze(flat, ax1{0})
            shape = Concat<axis=0>(first, second)
            b = Reshape(a, shape)
            y = Gemm<transB=1>(b, w2[5,288])
            """
        ),
        groups=[8],
    )


def test_a_part_behind_one_that_shrinks_is_cut_where_it_now_begins() -> None:
    """The second half of a weight, which stays whole, starts earlier when the first half loses positions."""
    assert_removal_equals_zeroing(
        build(
            """
            w = Slice(both[16,8], s0{0}, s8{8}, ax0{0})
            v = Slice(both, s8b{8}, s16{16}, ax0b{0})
            a = Gemm<transB=1>(x[N,8], w)
            r = Relu(a)
            b = Gemm<transB=1>(r, w2[8,8])
            y = Gemm<transB=1>(b, v)
            """
        ),
        groups=[8],
    )


def test_parts_of_one_vector_belong_together() -> None:
    """A bias that is cut and put together in another order, as exporters do for gates, is one vector and not three."""
    assert_removal_equals_zeroing(
        build(
            """
            b1 = Slice(bias[12], s0{0}, s4{4}, ax0{0})
            b2 = Slice(bias, s4b{4}, s12{12}, ax1{0})
            b = Concat<axis=0>(b2, b1)
            a = Gemm<transB=1>(x[N,5], w1[12,5], b)
            y = Gemm<transB=1>(a, w2[3,12])
            """
        ),
        groups=[8, 4],
    )


def test_a_bound_that_is_a_scalar_stays_a_scalar() -> None:
    """Where two nodes read one number and only one of them must read another, that one is of the same rank."""
    assert_removal_equals_zeroing(
        build(
            """
            start = Unsqueeze(half[]{8}, ax0{0})
            a = Gemm<transB=1>(x[N,5], w1[16,5])
            b = Slice(a, s0{0}, start, ax1{1})
            start2 = Unsqueeze(half, ax2{0})
            c = Slice(a, start2, s16{16}, ax3{1})
            start3 = Unsqueeze(half, ax4{0})
            d = Slice(x2[N,16], start3, s16b{16}, ax5{1})
            e = Mul(b, c)
            y1 = Gemm<transB=1>(e, w2[3,8])
            y2 = Gemm<transB=1>(d, w3[3,8])
            """
        ),
        groups=[8],
    )
