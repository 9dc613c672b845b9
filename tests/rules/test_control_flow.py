"""Bodies: channels are followed into them and out again."""

from __future__ import annotations

import pytest

from tests.models import build
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, coupled, reasons

IF = """
a = MatMul(x[N,4], w1[4,8])
t = Relu(a)
s = ReduceSum<keepdims=0>(x)
c = Greater(s, zero[]{0.0})
b = If(c) <
    then_branch = one () => (float[N,%d] p) { %s },
    else_branch = two () => (float[N,%d] q) { %s }>
y = MatMul(b, w4[%d,3])
"""


def branching(then: str, otherwise: str, width: int = 8) -> str:
    """A model that goes one of two ways."""
    return IF % (width, then, width, otherwise, width)


def test_branches_that_hand_channels_on() -> None:
    """What both branches make of the channels around them has the same channels."""
    model = build(branching("p = Neg(t)", "q = Mul(t, s2[8])"))
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_channels_inside_a_branch() -> None:
    """A hidden layer of one branch is a group of its own, its weights around the branch or in it."""
    inside = "h = MatMul(t, w2[8,6])\n u = Tanh(h)\n p = MatMul(u, w3[6,5])"
    model = build(branching(inside, "q = MatMul(t, w5[8,5])", width=5))
    couplings = assert_removal_equals_zeroing(model)
    assert sorted(group.size for group in couplings.groups) == [5, 6, 8]


def test_weights_that_a_branch_holds() -> None:
    """Constants in a body are sliced where they stand."""
    numbers = ",".join(str(0.1 * n - 2) for n in range(40))
    inside = f"k = Constant<value = float[8,5] {{{numbers}}}>()\n p = MatMul(t, k)"
    model = build(branching(inside, "q = MatMul(t, w5[8,5])", width=5))
    assert_removal_equals_zeroing(model, groups=[5, 8])


def test_branches_may_use_one_name_for_two_tensors() -> None:
    """Names inside branches side by side are told apart, and come back as they were."""
    then, otherwise = "h = MatMul(t, w2[8,6])\n p = MatMul(h, w3[6,5])", "h = Exp(t)\n q = MatMul(h, w5[8,5])"
    model = build(branching(then, otherwise, width=5))
    assert_removal_equals_zeroing(model, groups=[5, 6, 8])


def test_a_branch_within_a_branch() -> None:
    """Bodies may hold bodies."""
    inner = (
        "p = If(c) <then_branch = three () => (float[N,8] r) { r = Relu(a) }, "
        "else_branch = four () => (float[N,8] v) { v = Abs(a) }>"
    )
    model = build(branching(inner, "q = Neg(t)"))
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_branches_of_other_widths_keep_their_channels() -> None:
    """Where branches give other shapes, the channels stay."""
    model = build(branching("p = Concat<axis=1>(t, t)", "q = Neg(t)"))
    couplings = coupled(model)
    assert not couplings.groups
    assert any("another" in reason or "width" in reason for reason in reasons(couplings))


def test_a_branch_that_shapes_choose() -> None:
    """Where shapes decide, the branch that they choose says what comes out."""
    model = build(
        """
        a = MatMul(x[N,1,4], w1[4,8])
        n = Shape<start=1, end=2>(a)
        c = Equal(n, one{1})
        b = If(c) <
            then_branch = one_ () => (float[N,8] p) { p = Squeeze(a, ax{1}) },
            else_branch = two_ () => (float[N,1,8] q) { q = Identity(a) }>
        r = Relu(b)
        y = MatMul(r, w2[8,3])
        """
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


LOOP = """
h0 = MatMul(x[N,4], w1[4,8])
m = Constant<value = int64 {%d}>()
k = Constant<value = bool {1}>()
h = Loop(m, k, h0) <body = step (int64 i, bool go, float[N,8] h_in) => (bool go_on, float[N,8] h_out) {
    go_on = Identity(go)
    s = MatMul(h_in, w2[8,8])
    g = Add(s, h_in)
    h_out = %s(g)
}>
"""


@pytest.mark.parametrize("runs", [0, 1, 3])
def test_what_a_loop_carries(runs: int) -> None:
    """Channels that go round in a loop are one group with those that went in and those that come out."""
    model = build(LOOP % (runs, "Tanh") + "y = MatMul(h, w3[8,3])")
    assert_removal_equals_zeroing(model, groups=[8])


def test_norms_inside_branches_are_masked_there() -> None:
    """A norm, and a mean written out, count the channels that are left; a sum over the batch has no mask."""
    mean = "m = ReduceMean(t, axes{1})\n q = Sub(t, m)"
    assert_inexact(build(branching("p = LayerNormalization(t, scale[8])", mean)), {"a": 8})


def test_what_a_loop_fills_with_numbers_is_not_zero() -> None:
    """What is zero before the first run need not be before the second."""
    square = "t = Transpose<perm=[1,0]>(h)\n y = MatMul(h, t)"
    assert_removal_equals_zeroing(build(LOOP % (2, "Tanh") + square), groups=[8])
    assert_inexact(build(LOOP % (2, "Sigmoid") + square), {"h0": 8})


def test_what_a_loop_lays_end_to_end() -> None:
    """What each run makes comes out with the runs as a new first axis."""
    model = build(
        """
        a = MatMul(x[N,4], w1[4,8])
        m = Constant<value = int64 {3}>()
        k = Constant<value = bool {1}>()
        e, h = Loop(m, k, a) <body = step (int64 i, bool go, float[N,8] p) => (bool go_on, float[N,8] q, float[N,8] r) {
            go_on = Identity(go)
            q = Relu(p)
            f = Cast<to=1>(i)
            r = Mul(p, f)
        }>
        z = ReduceSum<keepdims=0>(h, first{0})
        s = Add(z, e)
        y = MatMul(s, w2[8,3])
        """
    )
    assert_removal_equals_zeroing(model, groups=[8])


def test_a_sequence_that_grows_in_a_loop_is_left_alone() -> None:
    """An axis whose width differs from run to run stays."""
    model = build(
        """
        a = MatMul(x[N,4], w1[4,8])
        m = Constant<value = int64 {2}>()
        k = Constant<value = bool {1}>()
        e = Loop(m, k, a) <body = step (int64 i, bool go, float[N,?] p) => (bool go_on, float[N,?] q) {
            go_on = Identity(go)
            q = Concat<axis=1>(p, a)
        }>
        y = MatMul(e, w2[24,3])
        """
    )
    couplings = coupled(model)
    assert not [group for group in couplings.groups if group.exact]


def test_a_recurrent_network_as_a_scan() -> None:
    """Input channels and hidden units of a recurrent network written out are groups."""
    model = build(
        """
        i = MatMul(x[T,N,4], w1[4,6])
        z = Constant<value = float[1,8] {0,0,0,0,0,0,0,0}>()
        b = Shape<start=1, end=2>(x)
        e = Constant<value = int64[1] {8}>()
        d = Concat<axis=0>(b, e)
        h0 = Expand(z, d)
        h, s = Scan<num_scan_inputs=1, body = step (float[N,8] h_in, float[N,6] p) => (float[N,8] h_out, float[N,8] r) {
            u = MatMul(p, w2[6,8])
            v = MatMul(h_in, w3[8,8])
            g = Add(u, v)
            h_out = Tanh(g)
            r = Identity(h_out)
        }>(h0, i)
        y1 = MatMul(h, w4[8,3])
        y2 = MatMul(s, w5[8,2])
        """
    )
    assert_removal_equals_zeroing(model, groups=[6, 8])
