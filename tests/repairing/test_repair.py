"""Refitting the layers behind what was pruned: what it brings, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import Plan, plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.probing.calibration import gather
from onnxprune.probing.proxies import magnitudes
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.repairing.repair import repair
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import bundled, digits
from tests.models import build
from tests.oracle import assert_same_interface, assert_valid

DENSE = "h = Gemm(x[N,4], w1[4,8], b1[8])\n a = Relu(h)\n y = Gemm(a, w2[8,3], b2[3])"


def keeping(couplings: Couplings, share: float) -> Plan:
    """Every exact group cut to a share, the channels of largest weights kept."""
    groups = [group for group in couplings.groups if group.exact]
    scores = magnitudes(couplings, groups)
    kept = {g.name: np.sort(np.argsort(-scores.of(g.name))[: max(1, round(share * g.size))]) for g in groups}
    return plan_of(couplings, kept)


def outputs(model: ModelProto, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The first output on all samples."""
    return np.asarray(session_for(model).run(None, {"x": arrays["x"]})[0])


def accuracy(model: ModelProto, arrays: dict[str, np.ndarray]) -> float:
    return float(np.mean(outputs(model, arrays).argmax(-1) == arrays["labels"]))


FREE = {
    "Gemm": (DENSE, (4,)),
    "Conv": ("h = Conv(x[N,2,6,7], w1[8,2,3,3], b1[8])\n a = Relu(h)\n y = Conv(a, w2[3,8,3,3], b2[3])", (2, 6, 7)),
}


@pytest.mark.parametrize("kind", FREE)
def test_a_channel_that_others_can_stand_in_for_goes_for_free(kind: str) -> None:
    """Of two channels that are the same, one takes over the other's part: the outputs are the original's."""
    text, shape = FREE[kind]
    model = build(text)
    for name in ("w1", "b1"):
        tensor = next(one for one in model.graph.initializer if one.name == name)
        weight = np.array(numpy_helper.to_array(tensor))
        if kind == "Gemm":
            weight[..., 4:] = weight[..., :4]
        else:
            weight[4:] = weight[:4]
        tensor.CopyFrom(numpy_helper.from_array(weight, name))
    couplings = couple(read(model))
    random = np.random.default_rng(0)
    calibration = gather(couplings.graph, {"x": random.standard_normal((200, *shape)).astype(np.float32)})
    plan = plan_of(couplings, {couplings.groups[0].name: np.arange(4)})
    pruned = rewrite(couplings, plan)
    mended = repair(couplings, plan, pruned, calibration).model
    wanted = outputs(model, dict(calibration.arrays))
    assert np.abs(outputs(pruned, dict(calibration.arrays)) - wanted).max() > 0.1
    np.testing.assert_allclose(outputs(mended, dict(calibration.arrays)), wanted, atol=1e-5 * np.abs(wanted).max())


CASES = {  # share of channels kept, accuracy without and with repair
    "mlp_torch": (0.3, 0.85, 0.90),
    "resnet_torchscript": (0.7, 0.80, 0.96),
    "resnet_dynamo": (0.7, 0.80, 0.96),
    "vit_torchscript": (0.7, 0.80, 0.88),
    "vit_dynamo": (0.7, 0.80, 0.88),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "resnet" in name or "dynamo" in name else ()) for name in CASES],
)
def test_repair_brings_accuracy_back(name: str) -> None:
    """On digits that no layer was fitted to, with channels chosen by nothing better than their weights."""
    share, without, with_repair = CASES[name]
    couplings, arrays = bundled(name), digits(name, 600)
    fitted = {key: value[:300] for key, value in arrays.items()}
    unseen = {key: value[300:] for key, value in arrays.items()}
    plan = keeping(couplings, share)
    pruned = rewrite(couplings, plan)
    found = repair(couplings, plan, pruned, gather(couplings.graph, fitted))
    assert accuracy(pruned, unseen) < without
    assert accuracy(found.model, unseen) >= with_repair
    assert all(layer.after <= layer.before for layer in found.layers)
    assert_valid(couplings.graph.model, found.model)
    assert_same_interface(couplings.graph.model, found.model)


def test_only_numbers_of_weights_change() -> None:
    """Nodes, names, shapes and what lies before the first pruned layer stay byte for byte."""
    couplings = bundled("resnet_torchscript")
    plan = keeping(couplings, 0.8)
    pruned = rewrite(couplings, plan)
    before = pruned.SerializeToString()
    mended = repair(couplings, plan, pruned, gather(couplings.graph, digits("resnet_torchscript", 64))).model
    assert pruned.SerializeToString() == before
    assert list(mended.graph.node) == list(pruned.graph.node)
    for one, other in zip(mended.graph.initializer, pruned.graph.initializer, strict=True):
        assert (one.name, one.dims, one.data_type) == (other.name, other.dims, other.data_type)
    assert mended.graph.initializer[0] == pruned.graph.initializer[0]


def test_a_bias_that_layers_share_is_parted() -> None:
    """Each layer gets numbers of its own; a layer that is not refitted keeps the old ones."""
    model = build("""
        h = Gemm(x[N,4], w1[4,8], b1[8])
        a = Relu(h)
        c = Gemm(a, w2[8,8], b1)
        d = Relu(c)
        y = Gemm(d, w3[8,3], b3[3])
    """)
    couplings = couple(read(model))
    calibration = gather(couplings.graph, {"x": np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)})
    first = next(group for group in couplings.groups if group.name == "h")
    plan = plan_of(couplings, {first.name: np.array([0, 2, 3, 5, 6, 7])})
    mended = repair(couplings, plan, rewrite(couplings, plan), calibration).model
    onnx.checker.check_model(mended, full_check=True)
    names = {node.input[2] for node in mended.graph.node if len(node.input) == 3}
    assert len(names) == 3


@pytest.mark.parametrize("text", [DENSE.replace("N,4", "1,4"), DENSE.replace("N,4", "4,4"), DENSE], ids=["1", "4", "N"])
def test_repair_does_not_ask_for_a_batch_size(text: str) -> None:
    """Models that take one sample, or four at a time, are refitted as those that take any number."""
    couplings = couple(read(build(text)))
    calibration = gather(couplings.graph, {"x": np.random.default_rng(0).standard_normal((120, 4)).astype(np.float32)})
    plan = plan_of(couplings, {couplings.groups[0].name: np.arange(5)})
    found = repair(couplings, plan, rewrite(couplings, plan), calibration)
    layer = found.layers[0]
    assert layer.penalty is not None
    assert layer.after < 0.9 * layer.before


def test_a_layer_need_not_read_every_input() -> None:
    """The part of the model that makes its outputs may lack an input that is read later."""
    couplings = couple(
        read(
            build("""
                h = Gemm(x1[N,4], w1[4,8], b1[8])
                a = Relu(h)
                c = Gemm(a, w2[8,3], b2[3])
                y = Add(c, x2[N,3])
            """)
        )
    )
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((100, size)).astype(np.float32) for name, size in (("x1", 4), ("x2", 3))}
    plan = plan_of(couplings, {couplings.groups[0].name: np.arange(5)})
    found = repair(couplings, plan, rewrite(couplings, plan), gather(couplings.graph, arrays))
    assert found.layers[0].after < found.layers[0].before


def test_too_few_samples_change_nothing() -> None:
    """One sample cannot be held out from itself."""
    couplings = couple(read(build(DENSE)))
    plan = plan_of(couplings, {couplings.groups[0].name: np.arange(5)})
    pruned = rewrite(couplings, plan)
    calibration = gather(couplings.graph, {"x": np.ones((1, 4), np.float32)})
    assert repair(couplings, plan, pruned, calibration).model == pruned


@pytest.mark.parametrize(
    "layer", ["r = Gemm(a, w2[8,8], b2[8])", "r = Gemm<transB=1>(a, w2[8,8])", "r = MatMul(a, w2[8,8])"]
)
def test_a_layer_that_makes_the_channels_it_reads_is_refitted(layer: str) -> None:
    """Both axes of its weight are one group; which of them it sums over is known all the same."""
    model = build(f"h = Gemm(x[N,4], w1[4,8], b1[8])\n a = Relu(h)\n {layer}\n s = Add(a, r)\n y = Gemm(s, w3[8,3])")
    couplings = couple(read(model))
    (group,) = couplings.groups
    random = np.random.default_rng(0)
    calibration = gather(couplings.graph, {"x": random.standard_normal((400, 4)).astype(np.float32)})
    plan = plan_of(couplings, {group.name: np.arange(5)})
    mended = repair(couplings, plan, rewrite(couplings, plan), calibration)
    (of_layer,) = (found for found in mended.layers if found.layer == "r")
    assert of_layer.penalty is not None
    assert of_layer.after < of_layer.before
