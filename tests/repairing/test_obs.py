"""Optimal Brain Surgeon: scores are what refitted layers lose, and what others can stand in for goes first."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.coupling.couple import couple
from onnxprune.errors import UsageError
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import gather
from onnxprune.reading.read import read
from onnxprune.repairing import readings
from onnxprune.repairing.obs import Remaining, greedy, optimal_brain_surgeon
from onnxprune.repairing.readings import Readings
from tests.bundled import bundled, digits, model_path
from tests.models import build

RANDOM = np.random.default_rng(0)


def layer(features: int = 6, outputs: int = 3, size: int = 1) -> tuple[np.ndarray, np.ndarray, Remaining]:
    """Inputs, weights, and the layer as the algorithm sees it; the last feature is the constant."""
    blocks = tuple(np.arange(features).reshape(-1, size))
    inputs = RANDOM.standard_normal((200, features)) @ RANDOM.standard_normal((features, features))
    inputs = np.hstack([inputs, np.ones((200, 1))])
    weights = np.vstack([RANDOM.standard_normal((features, outputs)), np.zeros(outputs)])
    gram = inputs.T @ inputs / 200
    energy = float((weights * (gram @ weights)).sum())
    return inputs, weights, Remaining(np.linalg.inv(gram), weights, blocks, energy)


def lost_without(gone: list[int], inputs: np.ndarray, weights: np.ndarray) -> float:
    """By least squares anew: the error without these features over the energy of the outputs."""
    wanted = inputs @ weights
    rest = np.delete(inputs, gone, axis=1)
    left = wanted - rest @ np.linalg.lstsq(rest, wanted, rcond=None)[0]
    return float(np.square(left).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_losses_are_those_of_least_squares(size: int) -> None:
    """For one channel after the other, however many features a channel has."""
    inputs, weights, remaining = layer(size=size)
    gone: list[int] = []
    lost = 0.0
    for channel in (1, 0):
        block = list(range(channel * size, (channel + 1) * size))
        lost += remaining.losses()[channel]
        gone += block
        assert lost == pytest.approx(lost_without(gone, inputs, weights), rel=1e-6)
        remaining.remove(channel)
    np.testing.assert_allclose(remaining.weights[gone], 0)


def test_the_cheapest_goes_first_each_time() -> None:
    """By brute force: of all channels that are left, the one without which least squares loses least."""
    inputs, weights, remaining = layer()
    scores = greedy([remaining], 6)
    gone: list[int] = []
    for _ in range(4):
        rest = [channel for channel in range(6) if channel not in gone]
        cheapest = min(rest, key=lambda channel: lost_without([*gone, channel], inputs, weights))
        assert cheapest == min(rest, key=lambda channel: scores[channel])
        gone.append(cheapest)


def test_channels_may_have_different_numbers_of_features() -> None:
    """None costs nothing; two cost what both do."""
    inputs, weights, remaining = layer()
    remaining.blocks = (np.array([0]), np.array([1, 2]), np.array([], np.int64), np.array([3]))
    expected = [lost_without(gone, inputs, weights) for gone in ([0], [1, 2], [], [3])]
    np.testing.assert_allclose(remaining.losses(), expected, rtol=1e-6, atol=1e-12)


def test_duplicates_go_for_free() -> None:
    """Of four pairs of equal neurons, one of each pair costs next to nothing, and the others do."""
    model: ModelProto = build("h = Gemm(x[N,4], w1[4,8], b1[8])\n a = Relu(h)\n y = Gemm(a, w2[8,3], b2[3])")
    for name in ("w1", "b1"):
        tensor = next(one for one in model.graph.initializer if one.name == name)
        weight = np.array(numpy_helper.to_array(tensor))
        weight[..., 4:] = weight[..., :4]
        tensor.CopyFrom(numpy_helper.from_array(weight, name))
    couplings = couple(read(model))
    calibration = gather(couplings.graph, {"x": RANDOM.standard_normal((300, 4)).astype(np.float32)})
    scores = optimal_brain_surgeon(Readings(couplings, calibration), couplings.groups).of(couplings.groups[0].name)
    cheap = np.argsort(scores)[:4]
    assert len(set(cheap % 4)) == 4
    assert scores[cheap].max() < 0.2 * np.delete(scores, cheap).min()


@pytest.mark.parametrize("name", ["resnet_dynamo", pytest.param("vit_torchscript", marks=pytest.mark.slow)])
def test_it_keeps_more_than_magnitude_where_layers_are_many(name: str) -> None:
    """With layers refitted, at a third of the MACs."""
    arrays = digits(name, 200)
    kept = [
        prune(model_path(name), arrays, macs="35%", criterion=criterion, compensate=True).report.pruned.loss
        for criterion in ("obs", "magnitude")
    ]
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[0] < kept[1]


def test_groups_that_no_layer_can_be_refitted_for_go_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there is no other group, that is said."""
    couplings = bundled("mlp_torch")
    monkeypatch.setattr(readings, "consumers", lambda couplings: iter(()))
    calibration = gather(couplings.graph, digits("mlp_torch", 8))
    with pytest.raises(UsageError, match=r"found none\. Take --criterion sensitivity"):
        optimal_brain_surgeon(Readings(couplings, calibration), couplings.groups)
