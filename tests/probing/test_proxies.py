"""Scores without probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.coupling.couple import couple
from onnxprune.probing.proxies import chances, magnitudes
from onnxprune.reading.read import read
from tests.bundled import bundled
from tests.models import build


def test_magnitude_of_a_neuron_is_the_norm_of_its_weights() -> None:
    """The weights into the neuron, its bias and the weights out of it, as one L2 norm."""
    couplings = bundled("mlp_torch")
    arrays = {name: constant.array() for name, constant in couplings.graph.constants.items()}
    parts = (arrays["hidden.weight"], arrays["hidden.bias"][:, None], arrays["output.weight"].T)
    expected = np.linalg.norm(np.concatenate(parts, axis=1), axis=1)
    np.testing.assert_allclose(magnitudes(couplings, couplings.groups).of("/hidden/Gemm"), expected, rtol=1e-6)


def test_magnitude_of_a_convolution_leaves_the_variance_out() -> None:
    """Filter, scale, bias and mean of the normalization and the weights that read the channel; no divisor."""
    couplings = couple(
        read(
            build("""
                a = Conv(x[N,3,6,6], w1[8,3,3,3])
                b = BatchNormalization(a, scale[8], bias[8], mean[8], variance[8])
                c = Relu(b)
                y = Conv(c, w2[5,8,1,1])
            """)
        )
    )
    arrays = {name: constant.array() for name, constant in couplings.graph.constants.items()}
    along = (arrays["w1"], arrays["scale"], arrays["bias"], arrays["mean"], np.moveaxis(arrays["w2"], 1, 0))
    expected = np.sqrt(sum(np.square(array).reshape(8, -1).sum(1) for array in along))
    np.testing.assert_allclose(magnitudes(couplings, couplings.groups).of("a"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("node", "stands_for"),
    [
        ("w = DequantizeLinear<axis=1>(uint8 w1[4,8], v[8], uint8 z[8])", lambda w, v, z: (w - z) * v),
        ("w = DequantizeLinear(uint8 w1[4,8], v[], uint8 z[])", lambda w, v, z: (w - z) * v),
        ("u = Transpose(uint8 w1[8,4])\n w = DequantizeLinear(u, v[], uint8 z[])", lambda w, v, z: (w.T - z) * v),
    ],
)
def test_magnitude_of_a_quantised_weight_is_of_what_it_stands_for(node: str, stands_for: Callable[..., Any]) -> None:
    """Scale times the distance from the zero point, whatever the numbers in the file."""
    couplings = couple(read(build(f"{node}\n a = MatMul(x[N,4], w)\n b = Relu(a)\n y = ReduceSum(b, over{{1}})")))
    arrays = (couplings.graph.constants[name].array().astype(np.float64) for name in ("w1", "v", "z"))
    expected = np.linalg.norm(stands_for(*arrays), axis=0)
    np.testing.assert_allclose(magnitudes(couplings, couplings.groups).of("a"), expected, rtol=1e-6)


def test_weights_that_are_not_finite_go_last() -> None:
    """A norm of NaN would put the neuron first."""
    model = build("a = Gemm(x[N,4], w1[4,8])\n b = Relu(a)\n y = Gemm(b, w2[8,3])")
    spoilt = numpy_helper.to_array(model.graph.initializer[0]).copy()
    spoilt[1, 5] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(spoilt, model.graph.initializer[0].name))
    couplings = couple(read(model))
    assert magnitudes(couplings, couplings.groups).of("a").argmax() == 5


def test_chance_follows_the_seed() -> None:
    """The same seed gives the same scores, another seed others."""
    couplings = bundled("resnet_dynamo")
    one, same, other = (chances(couplings, couplings.groups, seed) for seed in (3, 3, 4))
    assert one == same
    assert all(one.of(group.name).tolist() != other.of(group.name).tolist() for group in couplings.groups)
