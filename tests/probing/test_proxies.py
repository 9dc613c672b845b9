"""Scores without probes."""

from __future__ import annotations

import numpy as np

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


def test_chance_follows_the_seed() -> None:
    """The same seed gives the same scores, another seed others."""
    couplings = bundled("resnet_dynamo")
    one, same, other = (chances(couplings, couplings.groups, seed) for seed in (3, 3, 4))
    assert one == same
    assert all(one.of(group.name).tolist() != other.of(group.name).tolist() for group in couplings.groups)
