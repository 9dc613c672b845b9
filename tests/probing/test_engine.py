"""Running only what lies behind a group's cut gives the scores that the whole model gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from onnx import SparseTensorProto, numpy_helper

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.probing.engine import engine as engine_module
from onnxprune.probing.engine import sizes
from onnxprune.probing.engine.cutting import cut_for
from onnxprune.probing.engine.engine import Engine, Question
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.running import run_task
from onnxprune.probing.engine.sizes import demand_of
from onnxprune.probing.engine.tasks import Probe
from onnxprune.probing.gates import gates_of
from onnxprune.probing.losses import prepare_loss
from tests.bundled import CLASSIFIERS, MODELS, TWINS, bundled, digits
from tests.models import build
from tests.oracle import coupled
from tests.probing.engines import (
    answers,
    assert_engines_agree,
    assert_scores_are_loss_changes,
    exact,
    question,
    questions_about,
)
from tests.rewriting.test_random_graphs import QUIETLY, networks

SAMPLES = 10

ATTENTION = """
    q1 = Reshape(q, s1{0,7,2,4})
    k1 = Reshape(k, s1)
    v1 = Reshape(v, s1)
    q2 = Transpose<perm=[0,2,1,3]>(q1)
    k2 = Transpose<perm=[0,2,3,1]>(k1)
    v2 = Transpose<perm=[0,2,1,3]>(v1)
"""

NETWORKS = {
    "residual stream": """
        a = MatMul(x[N,7,5], w1[5,8])
        b = MatMul(a, w2[8,6])
        c = Relu(b)
        d = MatMul(c, w3[6,8])
        e = Add(a, d)
        f = MatMul(e, w4[8,6])
        g = Relu(f)
        h = MatMul(g, w5[6,8])
        i = Add(e, h)
        y = MatMul(i, w6[8,3])
    """,
    "convolutions and a gate": """
        a = Conv<pads=[1,1,1,1]>(x[N,3,6,6], w1[8,3,3,3], b1[8])
        b = Relu(a)
        c = Conv<group=8>(b, w2[8,1,3,3])
        d = Conv(c, w3[6,8,1,1], b3[6])
        e = GlobalAveragePool(d)
        f = Conv(e, w4[4,6,1,1])
        g = Relu(f)
        h = Conv(g, w5[6,4,1,1], b5[6])
        i = Sigmoid(h)
        j = Mul(d, i)
        k = Flatten(j)
        y = Gemm<transB=1>(k, w6[3,96], b6[3])
    """,
    "two groups side by side": """
        a = MatMul(x[N,5], w1[5,8])
        b = MatMul(x, w2[5,4])
        c = Concat<axis=1>(a, b)
        d = Relu(c)
        e = MatMul(d, w3[12,6])
        f = Relu(e)
        g = Concat<axis=1>(f, b)
        y = MatMul(g, w4[10,3])
    """,
    "beside an input": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        c = Concat<axis=1>(x, b)
        y = MatMul(c, w2[13,3])
    """,
    "two inputs": """
        a = Gemm(x1[N,5], w1[5,8])
        b = Gemm(x2[N,4], w2[4,8])
        c = Add(a, b)
        d = Relu(c)
        y = Gemm(d, w3[8,3])
    """,
    "packed attention": f"""
        p = MatMul(x[N,7,5], w1[5,24])
        q, k, v = Split<axis=2>(p, s0{{8,8,8}})
        {ATTENTION}
        a = MatMul(q2, k2)
        b = Softmax<axis=3>(a)
        c = MatMul(b, v2)
        d = Transpose<perm=[0,2,1,3]>(c)
        e = Reshape(d, s2{{0,7,8}})
        y = MatMul(e, w2[8,3])
    """,
    "batch and heads in one axis": f"""
        q = MatMul(x[N,7,5], w1[5,8])
        k = MatMul(x, w2[5,8])
        v = MatMul(x, w3[5,8])
        {ATTENTION}
        q3 = Reshape(q2, s2{{-1,7,4}})
        k3 = Reshape(k2, s3{{-1,4,7}})
        v3 = Reshape(v2, s2)
        a = MatMul(q3, k3)
        b = Softmax<axis=2>(a)
        c = MatMul(b, v3)
        d = Reshape(c, s4{{-1,2,7,4}})
        e = Transpose<perm=[0,2,1,3]>(d)
        f = Reshape(e, s5{{0,7,8}})
        y = MatMul(f, w4[8,3])
    """,
    "batch inside of another axis": """
        a = Transpose<perm=[1,0,2]>(x[N,7,5])
        b = Reshape(a, s1{-1,5})
        c = MatMul(b, w1[5,8])
        d = Relu(c)
        e = MatMul(d, w2[8,6])
        f = Relu(e)
        n = Shape<start=0, end=1>(x)
        s = Concat<axis=0>(s2{7}, n, s3{6})
        g = Reshape(f, s)
        h = Transpose<perm=[1,0,2]>(g)
        y = MatMul(h, w3[6,3])
    """,
    "batch on the second axis": """
        a = Transpose<perm=[1,0,2]>(x[N,7,5])
        b = MatMul(a, w1[5,8])
        c = Relu(b)
        d = MatMul(c, w2[8,6])
        e = Relu(d)
        f = Transpose<perm=[1,0,2]>(e)
        y = MatMul(f, w3[6,3])
    """,
    "flattened batch": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        c = Reshape(b, s1{-1})
        d = Reshape(c, s2{-1,8})
        y = MatMul(d, w2[8,3])
    """,
    "GRU": """
        a = Transpose<perm=[1,0,2]>(x[N,7,5])
        b, c = GRU<hidden_size=6>(a, w1[1,18,5], w2[1,18,6], w3[1,36])
        d = Squeeze(c, s1{0})
        y = MatMul(d, w4[6,3])
    """,
    "LSTM": """
        a = MatMul(x[N,7,5], w0[5,4])
        b = Transpose<perm=[1,0,2]>(a)
        c, d, e = LSTM<hidden_size=6>(b, w1[1,24,4], w2[1,24,6], w3[1,48])
        f = Squeeze(c, s1{1})
        g = Transpose<perm=[1,0,2]>(f)
        y = MatMul(g, w4[6,3])
    """,
    "outputs of one group each": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        y1 = MatMul(x, w2[5,3])
        y2 = MatMul(b, w3[8,2])
        c = MatMul(x, w4[5,6])
        d = Relu(c)
        y3 = MatMul(d, w5[6,2])
    """,
    "carrier that others read": """
        a = MatMul(x[N,7,5], w1[5,8])
        b = Relu(a)
        c = Tanh(b)
        d = Add(b, c)
        e = Shape(b)
        n = Slice(e, s1{0}, s2{2})
        f = MatMul(b, w2[8,6])
        g = MatMul(d, w3[8,6])
        h = Add(f, g)
        s = Concat<axis=0>(n, s3{2,3})
        i = Reshape(h, s)
        y = ReduceSum<keepdims=0>(i, s4{2})
    """,
    "weights computed from constants": """
        w2 = Transpose<perm=[1,0]>(w1[8,5])
        a = MatMul(x[N,5], w2)
        b = Relu(a)
        w4 = Cast<to=1>(float16 w3[8,6])
        c = MatMul(b, w4)
        d = Relu(c)
        w6 = DequantizeLinear(int8 w5[6,4]{3,-2,7,1,-5}, vs[]{0.05}, int8 z[]{0})
        e = MatMul(d, w6)
        f = Relu(e)
        w9 = Mul(w7[4,3], w8[1,3])
        y = MatMul(f, w9)
    """,
    "shape arithmetic": """
        s = Shape(x[N,7,5])
        n = Gather<axis=0>(s, s0[]{0})
        n1 = Unsqueeze(n, s1{0})
        m = Gather<axis=0>(s, s2[]{1})
        m1 = Unsqueeze(m, s1)
        t1 = Concat<axis=0>(n1, m1, s3{2,4})
        t2 = Concat<axis=0>(n1, m1, s4{8})
        t3 = Concat<axis=0>(n1, s5{-1})
        a = MatMul(x, w1[5,8])
        b = Reshape(a, t1)
        c = Relu(b)
        d = Reshape(c, t2)
        e = MatMul(d, w2[8,6])
        f = Relu(e)
        g = Reshape(f, t3)
        y = MatMul(g, w3[42,3])
    """,
    "mask without a batch": """
        z = Mul(x[N,7,5], c0[]{0.0})
        z0 = ReduceSum<keepdims=0>(z)
        m = Add(m1[7,7], z0)
        q = MatMul(x, w1[5,8])
        k = MatMul(x, w2[5,8])
        kt = Transpose<perm=[0,2,1]>(k)
        a = MatMul(q, kt)
        b = Add(a, m)
        c = Softmax<axis=2>(b)
        v = MatMul(x, w3[5,8])
        d = MatMul(c, v)
        y = MatMul(d, w4[8,3])
    """,
    "rows counted from data": """
        z = Mul(x[N,5], c0[]{0.0})
        o = Add(z, c1[]{1.0})
        count = ReduceSum<keepdims=0>(o)
        n = Size(x)
        m = Cast<to=1>(n)
        r = Div(count, m)
        a = MatMul(x, w1[5,8])
        b = Relu(a)
        c = MatMul(b, w2[8,6])
        d = Mul(c, r)
        y = MatMul(d, w3[6,3])
    """,
    "stacked samples": """
        a = MatMul(x[7,5], w1[5,8])
        b = Relu(a)
        c = ReduceMean<keepdims=0>(b, s1{0})
        y = MatMul(c, w2[8,3])
    """,
    "sums over channels": """
        a = MatMul(x[N,7,5], w1[5,8])
        b = Relu(a)
        y = ReduceSum<keepdims=0>(b, s1{2})
    """,
    "everything summed up": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        y = ReduceSum<keepdims=0>(b)
    """,
    "samples that disturb each other": """
        a = ReduceMean<keepdims=1>(x[N,5], s1{0})
        b = Sub(x, a)
        c = MatMul(b, w1[5,8])
        d = Relu(c)
        e = ReduceMean<keepdims=1>(d, s1)
        f = Sub(d, e)
        y = MatMul(f, w2[8,3])
    """,
    "a reader that the loss does not see": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        y1 = MatMul(b, w2[8,3])
        c = MatMul(b, w3[8,4])
        y2 = ArgMax<axis=1>(c)
    """,
    "all pairs of channels": """
        a = MatMul(x[N,7,5], w1[5,4])
        b = Transpose<perm=[0,2,1]>(a)
        c = MatMul(b, a)
        d = Flatten(c)
        y = Gemm<transB=1>(d, w2[3,16])
    """,
    "rows by their numbers": """
        i = ArgMax<axis=1, keepdims=0>(x1[N,7])
        s = Shape(i)
        n = Squeeze(s, s0{0})
        r = Range(s1[]{0}, n, s2[]{1})
        o = Mul(r, s3[]{7})
        j = Add(o, i)
        a = MatMul(x2[N,7,5], w1[5,8])
        b = Relu(a)
        c = MatMul(b, w2[8,6])
        d = Relu(c)
        e = Reshape(d, s4{-1,6})
        f = Gather<axis=0>(e, j)
        y = MatMul(f, w3[6,3])
    """,
    "constants in nodes": """
        a = Constant<value_floats=[0.5, -0.25, 1.0, 2.0, -1.0, 0.75, 0.1, 0.2]>()
        b = Reshape(a, s1{1,8})
        c = ReduceSum(x[N,5], s2{1})
        d = MatMul(c, b)
        e = Relu(d)
        f = Constant<value = float[8,3] {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6}>()
        y = MatMul(e, f)
    """,
    "tokens": """
        a = Gather(w0[20,8], int64 x[N,6])
        s = Shape(x)
        n = Gather<axis=0>(s, i0[]{1})
        r = Range(i1[]{0}, n, i2[]{1})
        b = Gather(w1[6,8], r)
        c = Add(a, b)
        d = MatMul(c, w2[8,16])
        e = Relu(d)
        f = MatMul(e, w3[16,8])
        g = Add(c, f)
        h = MatMul(g, w4[8,4])
        y = ReduceMean<keepdims=0>(h, axes{1})
    """,
    "a group against itself": """
        a = MatMul(x[N,7,5], w1[5,8])
        b = Transpose<perm=[0,2,1]>(a)
        c = MatMul(a, b)
        d = MatMul(c, a)
        y = MatMul(d, w2[8,3])
    """,
    "positions joined one by one": """
        a = MatMul(x[N,7,5], w1[5,6])
        b = Reshape(a, s1{0,7,3,2})
        c = MatMul(x, w2[5,6])
        d = Reshape(c, s1)
        e = Mul(b, d)
        f = ReduceSum(e, s2{3})
        g = Mul(b, f)
        h = Reshape(g, s3{0,7,6})
        i = Slice(h, s4{0}, s5{-1}, s6{2})
        y1 = MatMul(h, w3[6,3])
        y2 = MatMul(i, w4[5,3])
    """,
    "class token of the batch's size": """
        s = Shape(x[N,7,5])
        n = Slice(s, s0{0}, s1{1})
        t = Concat<axis=0>(n, s2{1,8})
        a = Expand(w0[1,1,8], t)
        b = MatMul(x, w1[5,8])
        c = Concat<axis=1>(a, b)
        d = Relu(c)
        e = MatMul(d, w2[8,6])
        f = Relu(e)
        g = MatMul(f, w3[6,8])
        h = Add(c, g)
        i = Gather<axis=1>(h, i0[]{0})
        y = MatMul(i, w4[8,3])
    """,
    "outputs that are read again": """
        a = MatMul(x[N,7,5], w1[5,8])
        b = Relu(a)
        y1 = MatMul(b, w2[8,4])
        c = Relu(y1)
        y2 = MatMul(c, w3[4,3])
        y3 = Add(y1, c)
    """,
    "one weight for two layers": """
        a = MatMul(x[N,7,5], w1[5,8])
        b = Relu(a)
        c = MatMul(b, w2[8,8])
        d = Relu(c)
        e = MatMul(d, w2)
        f = Relu(e)
        y = MatMul(f, w3[8,3])
    """,
    "padded and scaled sums": """
        a = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x[N,3,6,6], w1[8,3,3,3])
        b = Relu(a)
        c = Conv<auto_pad="SAME_LOWER">(b, w2[6,8,3,3], b2[6])
        d = Relu(c)
        e = ConvTranspose<group=2, strides=[2,2]>(d, w3[6,3,2,2], b3[6])
        f = Relu(e)
        g = Flatten(f)
        h = Gemm<alpha=0.5, beta=2.0, transB=1>(g, w4[7,216], b4[7])
        i = Relu(h)
        y = Gemm<alpha=3.0>(i, w5[7,3], b5[1,3])
    """,
    "double precision": """
        a = MatMul(double x[N,5], double w1[5,8])
        b = Relu(a)
        c = MatMul(b, double w2[8,6])
        d = Tanh(c)
        y = MatMul(d, double w3[6,3])
    """,
}
"""What lies before and behind the cuts differs."""

FIXED = """
    a = MatMul(x[{rows},7,5], w1[5,8])
    b = Relu(a)
    c = Reshape(b, s1{{{rows},56}})
    d = MatMul(c, w2[56,6])
    e = Relu(d)
    y = MatMul(e, w3[6,3])
"""
NETWORKS["tied weights"] = """
    t = Transpose<perm=[1,0]>(w1[8,5])
    a = MatMul(x[N,5], t)
    b = Relu(a)
    c = MatMul(b, w1)
    y = MatMul(c, w2[5,3])
"""

TIME_FIRST = """
    a = MatMul(x[T,1,4], w1[4,8])
    b = Relu(a)
    c = RNN<hidden_size=6, direction="{direction}">(b, w2[1,6,8], w3[1,6,6])
    d = Squeeze(c, s0{{1}})
    e = Squeeze(d, s0)
    y = MatMul(e, w4[6,3])
"""
NETWORKS |= {f"time first, {one}": TIME_FIRST.format(direction=one) for one in ("forward", "reverse")}
NETWORKS |= {f"batch of {rows}": FIXED.format(rows=rows) for rows in (1, 4)}

NETWORKS |= {
    "If": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        m = ReduceMean<keepdims=0>(x)
        t = Greater(m, z[]{-100.0})
        c = MatMul(b, w2[8,6])
        h = MatMul(x, w3[5,6])
        d = If(t) <
            then_branch = one () => (float[N,6] t1) { t1 = Mul(h, c) },
            else_branch = other () => (float[N,6] t2) { t2 = Add(h, c) }
        >
        e = Relu(d)
        y = MatMul(e, w4[6,3])
    """,
    "If beside another reader": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        t = Greater(z1[]{1.0}, z2[]{-100.0})
        c = MatMul(b, w2[8,6])
        d = If(t) <
            then_branch = one () => (float[N,6] t1) { t1 = Tanh(c) },
            else_branch = other () => (float[N,6] t2) { t2 = Neg(c) }
        >
        e = Add(c, d)
        y = MatMul(e, w3[6,3])
    """,
    "If before": """
        h = MatMul(x[N,5], w1[5,6])
        t = Greater(z1[]{1.0}, z2[]{-100.0})
        d = If(t) <
            then_branch = one () => (float[N,6] t1) { t1 = Mul(h, h) },
            else_branch = other () => (float[N,6] t2) { t2 = Add(h, h) }
        >
        a = MatMul(d, w2[6,8])
        b = Relu(a)
        y = MatMul(b, w3[8,3])
    """,
    "Loop": """
        h = MatMul(x[N,5], w1[5,6])
        a = MatMul(x, w2[5,8])
        b = Relu(a)
        c = MatMul(b, w3[8,6])
        d = Loop(s0[]{3}, bool c0[]{1}, c) <body = step (int64 i, bool ci, float[N,6] si) => (bool co, float[N,6] so) {
            co = Identity(ci)
            so = Mul(si, h)
        }>
        e = Relu(d)
        y = MatMul(e, w4[6,3])
    """,
    "Scan": """
        a = MatMul(x[N,7,5], w1[5,8])
        b = Relu(a)
        c = MatMul(b, w2[8,6])
        h = MatMul(x, w3[5,6])
        m = ReduceMean<keepdims=0>(h, s0{1})
        d = Mul(m, z[]{0.0})
        e, f = Scan(d, c) <num_scan_inputs=1, scan_input_axes=[1],
            body = step (float[N,6] si, float[N,6] ci) => (float[N,6] so, float[N,6] co) {
                sp = Add(si, ci)
                so = Mul(sp, m)
                co = Identity(so)
            }
        >
        g = Relu(e)
        y = MatMul(g, w4[6,3])
    """,
    "sinks in branches": """
        a = MatMul(x[N,5], w1[5,8])
        b = Relu(a)
        m = ReduceMean<keepdims=0>(x)
        t = Greater(m, z[]{0.0})
        d = If(t) <
            then_branch = one () => (float[N,6] t1) { p = MatMul(b, w2[8,7]) q = Relu(p) t1 = MatMul(q, w3[7,6]) },
            else_branch = other () => (float[N,6] t2) { t2 = MatMul(b, w4[8,6]) }
        >
        c = MatMul(b, w6[8,6])
        e = Add(c, d)
        y = MatMul(e, w5[6,3])
    """,
    "a sink in a loop": """
        a = MatMul(x[N,5], w1[5,8])
        b = Tanh(a)
        d = Loop(s0[]{3}, bool c0[]{1}, b) <body = step (int64 i, bool ci, float[N,8] si) => (bool co, float[N,8] so) {
            co = Identity(ci)
            p = MatMul(si, w2[8,7])
            q = Relu(p)
            r = MatMul(q, w3[7,8])
            so = Add(si, r)
        }>
        y = MatMul(d, w4[8,3])
    """,
}
"""Bodies of control flow that read tensors from outside, and some that sum over channels."""


def samples_for(couplings: Couplings, count: int = SAMPLES) -> Calibration:
    """Made-up samples."""
    return gather(couplings.graph, None, seed=1).first(count)


LOSSES = [
    pytest.param(name, loss, marks=[pytest.mark.slow] if name in TWINS and loss != "mse" else [])
    for name in MODELS
    for loss in ("kl", "mse", "cross-entropy")
    if name in CLASSIFIERS or loss == "mse"
]


@pytest.mark.parametrize(("name", "loss"), LOSSES)
def test_bundled_models(name: str, loss: str) -> None:
    """All groups of real models, exact or not: single channels, many at once, closed or half open or more than open."""
    assert_engines_agree(bundled(name), digits(name, 8), loss, groups=bundled(name).groups, few=1)


@pytest.mark.parametrize("kind", NETWORKS)
def test_small_networks(kind: str) -> None:
    """Whatever lies before and behind the cut, and wherever the samples are."""
    couplings = coupled(build(NETWORKS[kind]))
    assert exact(couplings)
    assert_engines_agree(couplings, samples_for(couplings), "mse")
    assert_scores_are_loss_changes(couplings, samples_for(couplings), "mse")


@pytest.mark.parametrize(
    "kind", ["residual stream", "batch and heads in one axis", "LSTM", "batch of 4", "stacked samples"]
)
def test_small_networks_by_another_loss(kind: str) -> None:
    """The same for a divergence."""
    couplings = coupled(build(NETWORKS[kind]))
    assert_engines_agree(couplings, samples_for(couplings), "kl")
    assert_scores_are_loss_changes(couplings, samples_for(couplings), "kl")


MEMORIES = (100, 4000, 20_000, 100_000)
"""Bytes for rows of these small networks: for one, for a few, for some of the samples, for several probes."""


@pytest.fixture
def light_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory goes to rows."""
    monkeypatch.setattr(sizes, "PROCESS_BYTES", 0)


def test_memory_is_there_for_what_is_computed_for_all_rows_of_a_run() -> None:
    """What may count rows takes the part before the cut once more, on as many rows as probes share a run."""
    couplings = coupled(
        build("""
            a = MatMul(x[N,5], w1[5,8])
            b = Relu(a)
            c = MatMul(b, w2[8,3])
            d = MatMul(x, w3[5,900])
            e = Tanh(d)
            f = ReduceSum<keepdims=0>(e)
            y = Add(c, f)
        """)
    )
    demand = demand_of(couplings, cut_for(couplings, couplings.group("a").dims, ["y"]), samples_for(couplings))
    assert demand.row >= demand.sample > 900


@pytest.mark.usefixtures("light_processes")
@pytest.mark.parametrize("memory", MEMORIES)
def test_samples_that_disturb_each_other_are_compared_with_their_like(memory: int) -> None:
    """However many run at once: with all gates open nothing changes."""
    couplings = coupled(
        build("""
            a = MatMul(x[N,5], w1[5,8])
            b = Relu(a)
            c = ReduceMean<keepdims=1>(b, s1{0})
            d = Tanh(c)
            e = Add(b, d)
            y = MatMul(e, w2[8,3])
        """)
    )
    calibration = samples_for(couplings)
    loss = prepare_loss(couplings.graph, calibration, "mse")
    (group,) = exact(couplings)
    with Engine(couplings, calibration, loss, Means(jobs=4, memory=memory)) as engine:
        (answer,) = engine.answers([question(group, [])])
    assert answer.mean == pytest.approx(0, abs=1e-6)


def test_half_precision() -> None:
    """What comes across is rounded as the whole model may not round it: scores agree as far as float16 goes."""
    couplings = coupled(
        build("""
            a = MatMul(float16 x[N,5], float16 w1[5,8])
            b = Relu(a)
            c = MatMul(b, float16 w2[8,6])
            d = Tanh(c)
            e = MatMul(d, float16 w3[6,8])
            f = Add(b, e)
            y = MatMul(f, float16 w4[8,3])
        """)
    )
    assert_engines_agree(couplings, samples_for(couplings), "mse", tolerance=3e-3)


def test_sparse_weights() -> None:
    """A weight that is stored sparse is as constant as others."""
    model = build(NETWORKS["two groups side by side"])
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name == "w4"]
    model.graph.initializer.remove(weight)
    values = numpy_helper.from_array(numpy_helper.to_array(weight).ravel(), "w4")
    places = numpy_helper.from_array(np.arange(len(values.raw_data) // 4))
    model.graph.sparse_initializer.append(SparseTensorProto(values=values, indices=places, dims=weight.dims))
    couplings = coupled(model)
    assert exact(couplings)
    assert_engines_agree(couplings, samples_for(couplings), "mse")


def test_what_is_not_the_models_loss_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where open gates do not give the model's own loss, the whole model is run instead."""
    couplings = coupled(build(NETWORKS["residual stream"]))
    calibration = samples_for(couplings)
    loss = prepare_loss(couplings.graph, calibration, "mse")
    asked = [one for group in exact(couplings) for one in questions_about(group)]
    expected = {one.question.key: one for one in answers(couplings, calibration, loss, asked, whole=True)}
    with Engine(couplings, calibration, loss, Means(jobs=1)) as engine:
        assert any(one != expected[one.question.key] for one in engine.answers(asked))
        monkeypatch.setattr(engine_module, "SAME_LOSS", -1.0)
        assert all(one == expected[one.question.key] for one in engine.answers(asked))


def test_open_gates_that_give_no_number_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is NaN the model's own loss."""
    couplings = coupled(build(NETWORKS["residual stream"]))
    calibration = samples_for(couplings)
    loss = prepare_loss(couplings.graph, calibration, "mse")
    asked = [one for group in exact(couplings) for one in questions_about(group)]
    expected = answers(couplings, calibration, loss, asked, whole=True)
    with Engine(couplings, calibration, loss, Means(jobs=1)) as engine:
        monkeypatch.setattr(
            engine_module, "run_here", lambda tasks: ((n, run_task(t) * np.nan) for n, t in tasks.items())
        )
        found = {one.question.key: one for one in engine.answers(asked)}
    assert [found[one.key] for one in asked] == expected


ROWS_AND_STEPS = {
    "closed before they are fed": """
        d = Tanh(c)
        e = ReduceSum<keepdims=1>(d, s2{1})
        f = Mul(e, w2[3])
    """,
    "closed in the graph": """
        d = Tanh(c)
        e = MatMul(d, w2[8,8])
        f1 = Tanh(e)
        f2 = Add(f1, c)
        f3 = Tanh(f2)
        f4 = MatMul(f2, w3[8,3])
        f5 = MatMul(f3, w4[8,3])
        f = Add(f4, f5)
    """,
}


@pytest.mark.parametrize("steps", [3, 16])
@pytest.mark.parametrize("layers", ROWS_AND_STEPS.values(), ids=ROWS_AND_STEPS)
def test_samples_of_another_size_than_the_model_was_read_at(layers: str, steps: int) -> None:
    """Samples and steps may share an axis: how many rows of it are one sample's is as the data have it."""
    couplings = coupled(
        build(f"""
            a = Shape<start=0,end=2>(x[N,T,5])
            s = Concat<axis=0>(a, n{{3}})
            b = Reshape(x, s1{{-1,5}})
            c = MatMul(b, w1[5,8])
            {layers}
            y = Reshape(f, s)
        """)
    )
    assert exact(couplings)
    x = np.random.default_rng(0).standard_normal((4, steps, 5)).astype(np.float32)
    assert_engines_agree(couplings, {"x": x}, "mse")


def test_one_sample() -> None:
    """A single sample is no reason to think that samples leave each other alone."""
    couplings = coupled(
        build("""
            a = MatMul(x[N,5], w1[5,8])
            b = Relu(a)
            c = ReduceMean<keepdims=1>(b, s1{0})
            d = Tanh(c)
            e = Add(b, d)
            y = MatMul(e, w2[8,3])
        """)
    )
    assert_engines_agree(couplings, samples_for(couplings, 1), "mse")


@pytest.mark.usefixtures("light_processes")
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("kind", ["convolutions and a gate", "rows counted from data", "LSTM", "batch of 4"])
def test_little_memory(kind: str, memory: int) -> None:
    """Samples in small portions, and nothing kept of what comes across, change no score."""
    couplings = coupled(build(NETWORKS[kind]))
    assert_engines_agree(couplings, samples_for(couplings), "mse", means=Means(jobs=1, memory=memory))


@pytest.mark.usefixtures("light_processes")
@pytest.mark.parametrize("memory", [20_000, 50_000, 200_000])
@pytest.mark.parametrize("kind", ["residual stream", "convolutions and a gate", "batch of 4"])
def test_groups_asked_for_later(kind: str, memory: int) -> None:
    """Groups that need smaller portions change nothing in the scores of those asked for before, and again after."""
    couplings = coupled(build(NETWORKS[kind]))
    calibration = samples_for(couplings)
    loss = prepare_loss(couplings.graph, calibration, "mse")
    by_group = [list(questions_about(group)) for group in exact(couplings)]
    asked = [one for alike in by_group for one in alike]
    expected = {
        one.question.key: one.mean for one in answers(couplings, calibration, loss, asked, Means(jobs=1), whole=True)
    }
    for order in (by_group, by_group[::-1]):
        with Engine(couplings, calibration, loss, Means(jobs=1, memory=memory)) as engine:
            found = [one for alike in (*order, *order) for one in engine.answers(alike)]
        assert len(found) == 2 * len(asked)
        assert [one.mean for one in found] == pytest.approx([expected[one.question.key] for one in found], abs=1e-6)


@pytest.mark.parametrize(
    "kind", ["residual stream", "convolutions and a gate", "LSTM", "stacked samples", "tied weights"]
)
def test_probes_with_constants_of_their_own(kind: str) -> None:
    """Other numbers for what reads a group are seen wherever these constants are read."""
    couplings = coupled(build(NETWORKS[kind]))
    calibration = samples_for(couplings)
    loss = prepare_loss(couplings.graph, calibration, "mse")
    asked = [
        Question(group.name, "other weights", (Probe((0, 1), constants=other_weights(couplings, group)),), (1.0, -1.0))
        for group in exact(couplings)
    ]
    found, expected = (answers(couplings, calibration, loss, asked, whole=whole) for whole in (False, True))
    assert [one.mean for one in found] == pytest.approx([one.mean for one in expected], rel=1e-5)
    assert min(one.mean for one in expected) > 1e-3


def other_weights(couplings: Couplings, group: Group) -> dict[str, np.ndarray]:
    """The constants that the group's sinks read, each number a little larger."""
    reading = {position for gate in gates_of(couplings, group.dims) for position, _ in gate.uses}
    readers = {one.tensor: couplings.graph.readers[one.tensor] for one in group.slices}
    names = [name for name, uses in readers.items() if any(node.position in reading for node, _ in uses)]
    arrays = {name: couplings.graph.constants[name].array() for name in names}
    return {name: (array * 1.1).astype(array.dtype) for name, array in arrays.items()}


@given(st.booleans().flatmap(lambda images: networks(images=images, most=8)))
@settings(max_examples=15, suppress_health_check=QUIETLY)
def test_random_networks(text: str) -> None:
    """Layers joined, cut, shuffled and gated in any way."""
    check_random(text)


@pytest.mark.slow
@given(st.booleans().flatmap(lambda images: networks(images=images, most=20)))
@settings(max_examples=500, suppress_health_check=QUIETLY, derandomize=False)
def test_many_large_random_networks(text: str) -> None:
    """The same for larger networks, and others each time."""
    check_random(text)


def check_random(text: str) -> None:
    note(text)
    couplings = coupled(build(text))
    assert_engines_agree(couplings, samples_for(couplings, 5), "mse", few=1)
