"""Gates in nodes that multiply, look up and add inside: closing one all the way measures the removal."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.coupling.couple import couple
from onnxprune.probing.calibration import gather
from onnxprune.probing.engine.engine import Engine
from onnxprune.probing.engine.means import Means
from onnxprune.probing.losses import prepare_loss
from onnxprune.reading.read import read
from tests.models import build
from tests.probing.engines import question, without
from tests.probing.losses import IN_NUMPY, outputs_of

SAMPLES = 4

MODELS = {
    "attention": (
        """
        q = MatMul(x[N,4,6], w1[6,12])
        k = MatMul(x, w2[6,12])
        v = MatMul(x, w3[6,18])
        a = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)
        m = ReduceSum<keepdims=0>(a, axes{1})
        y = MatMul(m, w4[18,3])
        """,
        23,
    ),
    "packed attention": (
        """
        a = com.microsoft.Attention<num_heads=3>(x[N,4,6], w1[6,36], b[36])
        m = ReduceSum<keepdims=0>(a, axes{1})
        y = MatMul(m, w4[12,3])
        """,
        18,
    ),
    "attention with a packed bias": (
        """
        q = MatMul(x[N,4,6], w1[6,12])
        k = MatMul(x, w2[6,12])
        v = MatMul(x, w3[6,18])
        a = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, b[42])
        m = ReduceSum<keepdims=0>(a, axes{1})
        y = MatMul(m, w4[18,3])
        """,
        18,
    ),
    "a fused convolution": (
        """
        a = com.microsoft.FusedConv<activation="Relu">(x[N,3,4,4], w1[8,3,1,1], b1[8])
        b = com.microsoft.FusedConv<activation="Relu">(a, w2[6,8,1,1], b2[6])
        c = GlobalAveragePool(b)
        d = Flatten(c)
        y = MatMul(d, w3[6,3])
        """,
        18,
    ),
    "lookups": (
        """
        a = MatMul(x[N,6], w1[6,9])
        b = Gather<axis=1>(a, i{8,1,1,0,5,7})
        c = Slice(a, s{0}, e{9}, axes{1}, steps{4})
        d = MatMul(b, w2[6,3])
        f = MatMul(c, w3[3,3])
        y = Add(d, f)
        """,
        18,
    ),
    "running sums": (
        """
        a = MatMul(x[N,6], w1[6,8])
        c = CumSum(a, axis[]{1})
        y = MatMul(c, w2[8,3])
        """,
        18,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_closed_gate_is_a_removal(name: str) -> None:
    """The loss changes exactly as it does when the rewritten model is run without these channels."""
    text, opset = MODELS[name]
    couplings = couple(read(build(text, opset=opset)))
    (port,) = couplings.graph.inputs
    shape = (SAMPLES, *couplings.graph.input_shapes[port.name][1:])
    arrays = {port.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    calibration = gather(couplings.graph, arrays)
    original = outputs_of(couplings.graph.model, arrays)
    for group in couplings.groups:
        channels = [0, group.size - 1][: group.size - 1]
        with Engine(couplings, calibration, prepare_loss(couplings.graph, calibration, "mse"), Means(jobs=1)) as engine:
            (answer,) = engine.answers([question(group, channels)])
        smaller = outputs_of(without(couplings, group, channels), arrays)
        expected = float(np.mean(IN_NUMPY["mse"](smaller, original, None)))
        assert answer.mean == pytest.approx(expected, rel=2e-4, abs=2e-5), group.name
