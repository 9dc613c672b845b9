"""Giving nodes that work by stored statistics those that their channels have after pruning."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.read import read
from onnxprune.repairing.repair import repair
from onnxprune.repairing.standardized import standardized_steps
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import digits, model_path
from tests.models import build

TEXT = """
    a = Conv(x[N,3,6,7], w1[8,3,3,3], b1[8])
    b = BatchNormalization(a, scale[8], shift[8], mean[8], variance[8])
    c = Relu(b)
    y = Conv(c, w2[4,8,1,1])
"""
BEHIND_A_POOL = """
    a = Conv(x[N,3,6,7], w1[8,3,3,3], b1[8])
    c = Conv(a, w2[6,8,1,1])
    d = MaxPool<kernel_shape=[2,2]>(c)
    b = BatchNormalization(d, scale[6], shift[6], mean[6], variance[6])
    y = Conv(b, w3[4,6,1,1])
"""


def images(couplings: Couplings) -> Calibration:
    random = np.random.default_rng(0)
    return gather(couplings.graph, {"x": random.standard_normal((60, 3, 6, 7)).astype(np.float32)})


def with_numbers(model: ModelProto, **arrays: np.ndarray) -> ModelProto:
    """The model with other numbers in some constants."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name].astype(np.float32), tensor.name))
    return copy


def statistics(model: ModelProto) -> dict[str, np.ndarray]:
    return {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if one.name in ("mean", "variance")}


def test_statistics_that_were_lost_are_found_again() -> None:
    """The mean and the variance that give the original's outputs, from what is read and made alone."""
    couplings = couple(read(build(TEXT)))
    model = with_numbers(couplings.graph.model, mean=np.arange(8) - 4.0, variance=2 + np.arange(8) % 3)
    (step,) = standardized_steps(couplings)
    (refit,) = step.refit(model, {}, images(couplings), 1)
    assert refit.constants == ("mean", "variance")
    assert refit.layer.before > 0.1
    assert refit.layer.after < 1e-8
    for name, array in statistics(couplings.graph.model).items():
        np.testing.assert_allclose(statistics(model)[name], array, rtol=1e-3, atol=1e-3)


def test_statistics_of_a_channel_that_never_varies_stay() -> None:
    """There is nothing to learn from it, nor from one that is scaled by nothing."""
    scale = 1.0 + np.arange(8)
    scale[2] = 0
    weight = np.random.default_rng(1).standard_normal((8, 3, 3, 3))
    weight[5] = 0
    couplings = couple(read(with_numbers(build(TEXT), scale=scale, w1=weight)))
    model = with_numbers(couplings.graph.model, mean=np.arange(8) - 4.5)
    (step,) = standardized_steps(couplings)
    (refit,) = step.refit(model, {}, images(couplings), 1)
    assert refit.layer.after < refit.layer.before
    mean = statistics(model)["mean"]
    assert (mean[2], mean[5]) == (-2.5, 0.5)
    assert np.isfinite(mean).all()
    assert (statistics(model)["variance"] > 0).all()


def test_statistics_are_those_of_channels_that_have_drifted() -> None:
    """Behind what was pruned, where no weights stand before them that could be refitted to the same end."""
    couplings = couple(read(build(BEHIND_A_POOL)))
    plan = plan_of(couplings, {"a": np.arange(4)})
    found = repair(couplings, plan, rewrite(couplings, plan), images(couplings))
    layer = next(one for one in found.layers if one.layer == "b")
    assert layer.after < layer.before
    assert {"mean", "variance"} <= set(found.constants)


def test_a_whole_run_proves_what_is_left() -> None:
    """A network with depthwise convolutions and statistics of its own passes its check."""
    data = digits("resnet_torchscript", 60)
    result = prune(model_path("resnet_torchscript"), data, macs="60%", criterion="magnitude", compensate=True)
    assert result.report.verdict.passed
    assert any("body.3" in layer.layer and layer.penalty is not None for layer in result.report.refitted)


def test_constants_that_are_no_plain_initializers_are_left_alone() -> None:
    """A scale that comes through another node is read, not changed."""
    model = build(TEXT.replace("a, scale[8]", "a, same").replace("    b = ", "    same = Identity(scale[8])\n    b = "))
    couplings = couple(read(model))
    (step,) = standardized_steps(couplings)
    assert not list(step.refit(with_numbers(model), {}, images(couplings), 1))
