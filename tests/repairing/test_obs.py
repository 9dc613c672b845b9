"""Optimal Brain Surgeon: scores are what refitted layers lose, and what others can stand in for goes first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import UsageError
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.repairing import readings
from onnxprune.repairing.obs import Remaining, greedy, optimal_brain_surgeon
from onnxprune.repairing.readings import Readings
from onnxprune.repairing.standing_in import StandIns
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import FIXTURES, bundled, digits, model_path
from tests.models import build

RANDOM = np.random.default_rng(0)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


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


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet_dynamo", "vit_torchscript")]
)
def test_it_keeps_more_than_magnitude_where_layers_are_many(name: str) -> None:
    """On digits that no layer was fitted to, all widths alike, with layers refitted, at a third of the MACs."""
    with np.load(FIXTURES / "digits" / "test.npz") as archive:
        unseen = {"x": archive["x"]}
    wanted = probabilities(model_path(name), unseen)
    kept = [
        distance(wanted, probabilities(pruned.model, unseen))
        for pruned in (
            prune(model_path(name), digits(name, 200), macs="35%", criterion=criterion, allocation="uniform")
            for criterion in ("obs", "magnitude")
        )
    ]
    assert kept[0] < kept[1]


def probabilities(model: ModelProto | Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """Of the classes, from logits."""
    (logits,) = session_for(onnx.load(model) if isinstance(model, Path) else model).run(None, feed)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def distance(wanted: np.ndarray, found: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence."""
    return float((wanted * np.log(wanted / found)).sum(-1).mean())


def network(kind: str) -> ModelProto:
    """A layer that runs along time, whose second half of units is the first once more, before one that does not."""
    rows = 6 * GATES[kind]
    model = build(f"""
        h = {kind}<hidden_size=6>(x[7,3,4], w[1,{rows},4], r[1,{rows},6], b[1,{2 * rows}])
        f = Reshape(h, shape{{7,3,6}})
        y = MatMul(f, wy[6,3])
    """)
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "r", "b"):
            array = np.array(numpy_helper.to_array(tensor))
            units = array.reshape(1, -1, 6, *array.shape[2:])
            units[:, :, 3:] = units[:, :, :3]
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def sequences(couplings: Couplings) -> Calibration:
    return gather(couplings.graph, {"x": RANDOM.standard_normal((60, 7, 3, 4)).astype(np.float32)})


@pytest.mark.parametrize("kind", GATES)
def test_units_that_are_there_twice_go_first(kind: str) -> None:
    """One of each two, and for next to nothing: the layer itself reads its units, and so does the one behind it."""
    couplings = couple(read(network(kind)))
    scores = optimal_brain_surgeon(Readings(couplings, sequences(couplings)), couplings.groups).of("h")
    cheap = np.argsort(scores)[:3]
    assert sorted(cheap % 3) == [0, 1, 2]
    assert scores[cheap].max() < 0.1 * np.delete(scores, cheap).min()


@pytest.mark.parametrize("kind", GATES)
def test_those_that_stay_stand_in_for_them(kind: str) -> None:
    """With what stands in for the weights that read them, the layer's own among them, nothing is lost."""
    couplings = couple(read(network(kind)))
    (group,) = (group for group in couplings.groups if group.name == "h")
    samples = sequences(couplings)
    plan = plan_of(couplings, {"h": np.arange(3)})
    mended = ModelProto()
    mended.CopyFrom(couplings.graph.model)
    weights = StandIns(Readings(couplings, samples))(group, np.arange(3))
    for tensor in mended.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    feed = samples.at(np.array([0]))
    whole, plain, stood_in = (
        session_for(model).run(None, feed)[0]
        for model in (
            couplings.graph.model,
            rewrite(couplings, plan),
            rewrite(couple(read(mended)), plan_of(couple(read(mended)), {"h": np.arange(3)})),
        )
    )
    assert set(weights) == {"w", "r", "b", "wy"}
    assert np.abs(stood_in - whole).max() < 0.05 * np.abs(plain - whole).max()


def test_groups_that_no_layer_can_be_refitted_for_go_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """And where there is no other group, that is said."""
    couplings = bundled("mlp_torch")
    monkeypatch.setattr(readings, "consumers", lambda couplings: iter(()))
    calibration = gather(couplings.graph, digits("mlp_torch", 8))
    with pytest.raises(UsageError, match=r"found none\. Take --criterion sensitivity"):
        optimal_brain_surgeon(Readings(couplings, calibration), couplings.groups)
