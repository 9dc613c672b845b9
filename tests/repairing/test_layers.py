"""A layer by itself: its features times its weights are its outputs, whatever kind of layer it is."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings, couple
from onnxprune.probing.calibration import gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.layers import Features, as_matrix, as_rows, from_matrix
from onnxprune.repairing.places import Place
from tests.models import build

FLAT = "h = Gemm(x[N,4], w1[4,6], b1[6])\n a = Relu(h)\n"
IMAGE = "h = Conv(x[N,3,8,9], w1[6,3,3,3], b1[6])\n a = Relu(h)\n"

LAYERS = {
    "Gemm": FLAT + "y = Gemm(a, w2[6,5], b2[5])",
    "Gemm, transposed and scaled": FLAT + "y = Gemm<transB=1, alpha=0.5, beta=2.0>(a, w2[5,6], b2[5])",
    "Gemm without bias": FLAT + "y = Gemm(a, w2[6,5])",
    "MatMul": FLAT + "y = MatMul(a, w2[6,5])",
    "MatMul and Add": FLAT + "c = MatMul(a, w2[6,5])\n y = Add(c, b2[5])",
    "Add and MatMul": FLAT + "c = MatMul(a, w2[6,5])\n y = Add(b2[1,5], c)",
    "MatMul and Sub": FLAT + "c = MatMul(a, w2[6,5])\n y = Sub(c, b2[5])",
    "MatMul of sequences": "h = MatMul(x[N,7,4], w1[4,6])\n a = Relu(h)\n c = MatMul(a, w2[6,5])\n y = Add(c, b2[5])",
    "Conv": IMAGE + "y = Conv(a, w2[5,6,3,3], b2[5])",
    "Conv, strided, dilated and padded": IMAGE
    + "y = Conv<strides=[2,1], dilations=[1,2], pads=[1,2,0,1]>(a, w2[5,6,3,2], b2[5])",
    "ConvTranspose": IMAGE + "y = ConvTranspose<strides=[2,2], pads=[1,0,0,1]>(a, w2[6,5,3,3], b2[5])",
    "Conv without bias": IMAGE + "y = Conv(a, w2[5,6,1,1])",
}


def last_layer(model: ModelProto) -> tuple[Couplings, Consumer]:
    """The couplings, and the layer that makes the output."""
    couplings = couple(read(model))
    return couplings, list(consumers(couplings))[-1]


@pytest.mark.parametrize("kind", LAYERS)
def test_features_times_weights_are_outputs(kind: str) -> None:
    """For every layer: its features, by its weights as a matrix, and its bias by what the bias does, are its output."""
    couplings, consumer = last_layer(build(LAYERS[kind]))
    model = couplings.graph.model
    calibration = gather(couplings.graph, None)
    feed = calibration.at(np.arange(4))
    data, output = session_for(up_to(model, [consumer.input, consumer.output])).run(None, feed)
    weight = Place(model, consumer.output, consumer.weight)
    bias = Bias.of(model, consumer, calibration)
    assert bias is not None
    assert bias.is_free == ("without" not in kind and kind != "MatMul")
    matrix = as_matrix(weight.array, consumer)
    found = Features(weight.node, model, consumer, weight.array).of(data) @ matrix + bias.constant(5)
    np.testing.assert_allclose(found, as_rows(output, consumer.made_at), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(from_matrix(matrix, weight.array, consumer), weight.array)


@pytest.mark.parametrize("kind", ["Gemm, transposed and scaled", "MatMul and Sub", "Add and MatMul", "Conv"])
def test_a_bias_is_moved_by_what_it_does(kind: str) -> None:
    """Outputs that are to grow by so much do, whether the bias is scaled or taken off."""
    couplings, consumer = last_layer(build(LAYERS[kind]))
    model, calibration = couplings.graph.model, gather(couplings.graph, None)
    feed, by = calibration.at(np.arange(4)), np.arange(5) - 2.0
    before = session_for(model).run(None, feed)[0]
    bias = Bias.of(model, consumer, calibration)
    assert bias is not None
    bias.move(by)
    grown = as_rows(session_for(model).run(None, feed)[0] - before, consumer.made_at)
    np.testing.assert_allclose(grown, np.broadcast_to(by, grown.shape), rtol=1e-4, atol=1e-4)


def test_where_the_layer_is_taken_off_its_bias_moves_the_other_way() -> None:
    """So that what the layer makes would have grown by so much."""
    couplings, consumer = last_layer(build(FLAT + "c = MatMul(a, w2[6,5])\n y = Sub(b2[5], c)"))
    model, calibration = couplings.graph.model, gather(couplings.graph, None)
    feed, by = calibration.at(np.arange(4)), np.arange(1.0, 6.0)
    (before,) = session_for(model).run(None, feed)
    bias = Bias.of(model, consumer, calibration)
    assert bias is not None
    bias.move(by)
    np.testing.assert_allclose(session_for(model).run(None, feed)[0], before - by, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", ["y = Max(c, b2[5])", "y = Mul(c, b2[5])", "d = Add(c, b2[5])\n y = Mul(c, d)"])
def test_what_is_no_bias_is_left_alone(last: str) -> None:
    """A constant that does something else than being added, or behind an output that others read too."""
    couplings = couple(read(build(FLAT + "c = MatMul(a, w2[6,5])\n " + last)))
    consumer = next(one for one in consumers(couplings) if one.output == "c")
    bias = Bias.of(couplings.graph.model, consumer, gather(couplings.graph, None))
    assert bias is not None
    assert not bias.is_free
