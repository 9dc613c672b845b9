"""Costs as polynomials in the widths of groups."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.rewriting.rewrite import rewrite_kept
from tests.models import build
from tests.oracle import coupled, parameters, random_selection

MODELS = {
    "convolutions": """
        a = Conv<pads=[1,1,1,1]>(x[N,3,6,6], w1[8,3,3,3], b1[8])
        b = Conv<group=4>(a, w2[12,2,3,3])
        c = BatchNormalization(b, scale[12], shift[12], mean[12], v1[12])
        d = Flatten(c)
        y = Gemm<transB=1>(d, w3[5,192], b3[5])
    """,
    "attention": """
        q = MatMul(x[N,7,5], wq[5,12])
        k = MatMul(x, wk[5,12])
        q0 = Reshape(q, s{0,0,3,4})
        k0 = Reshape(k, s)
        q1 = Transpose<perm=[0,2,1,3]>(q0)
        k1 = Transpose<perm=[0,2,3,1]>(k0)
        a = MatMul(q1, k1)
        y = ReduceSum(a, axes{1})
    """,
    "recurrent": """
        h, last = LSTM<hidden_size=6>(x[7,N,5], w[1,24,5], r[1,24,6], b[1,48])
        y = MatMul(last, out[6,3])
    """,
}


@pytest.mark.parametrize("text", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("seed", range(5))
def test_costs_are_those_of_the_pruned_model(text: str, seed: int) -> None:
    """What the polynomials say about a selection is what the pruned model costs when it is read by itself."""
    couplings = coupled(build(text))
    kept = random_selection(couplings.groups, np.random.default_rng(seed))
    widths = {dim: len(stay) for dim, stay in kept.items()}
    pruned = coupled(rewrite_kept(couplings, kept))
    assert couplings.costs.params.at(widths) == pruned.costs.params.at({}) == parameters(pruned.graph.model)
    assert couplings.costs.macs.at(widths) == pruned.costs.macs.at({})


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("y = Conv<pads=[1,1,1,1]>(x[N,3,6,6], w1[8,3,3,3])", 36 * 8 * 3 * 9),
        ("y = Conv<group=2, pads=[1,1,1,1]>(x[N,4,6,6], w1[8,2,3,3])", 36 * 8 * 2 * 9),
        ("y = Conv<strides=[2,2]>(x[2,3,6,6], w1[8,3,2,2])", 2 * 9 * 8 * 3 * 4),
        ("y = ConvTranspose<strides=[2,2]>(x[N,3,6,6], w1[3,8,2,2])", 36 * 8 * 3 * 4),
        ("y = ConvTranspose<group=2>(x[N,4,6,6], w1[4,5,2,2])", 36 * 4 * 5 * 4),
        ("y = Gemm<transB=1>(x[N,5], w1[8,5], b1[8])", 40),
        ("y = MatMul(x[N,7,5], w1[5,8])", 7 * 5 * 8),
        ("y = MatMul(x[N,3,7,5], x2[N,3,5,6])", 3 * 7 * 5 * 6),
        ('y = Einsum<equation="nsi,hio->nhso">(x[N,7,5], w1[2,5,8])', 7 * 2 * 5 * 8),
        ("y = LSTM<hidden_size=6>(x[7,1,5], w[1,24,5], r[1,24,6])", 7 * 24 * 11),
        ("y = Relu(x[N,5])", 0),
    ],
)
def test_macs(text: str, macs: int) -> None:
    """Multiply-accumulates of one sample where the batch is dynamic, of the whole batch where it is not."""
    assert coupled(build(text)).costs.macs.at({}) == macs


def test_bytes_are_those_of_the_file() -> None:
    """At full widths the polynomial gives the size of the file, and each removed number saves its bytes."""
    model = build(MODELS["convolutions"])
    couplings = coupled(model)
    assert couplings.costs.bytes.at({}) == model.ByteSize()
    kept = random_selection(couplings.groups, np.random.default_rng(0))
    widths = {dim: len(stay) for dim, stay in kept.items()}
    saved = couplings.costs.bytes.at({}) - couplings.costs.bytes.at(widths)
    assert saved == 4 * (parameters(model) - parameters(rewrite_kept(couplings, kept)))
