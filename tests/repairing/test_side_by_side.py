"""Refitting layers that stand side by side in one node: groups of channels, and channels by themselves."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.repairing import rows
from onnxprune.repairing.repair import repair
from onnxprune.repairing.side_by_side import side_by_side_steps
from onnxprune.rewriting.rewrite import rewrite
from tests.models import build
from tests.oracle import assert_same_interface, assert_valid

FIRST = "h = Conv(x[N,3,6,7], w1[8,3,1,1], b1[8])\n a = Tanh(h)\n"
LAST = "\n d = Tanh(g)\n y = Conv(d, w3[4,{made},1,1], b3[4])"
LAYERS = {
    "groups": ("g = Conv<group=4, pads=[1,1,1,1]>(a, w2[12,2,3,3], b2[12])", 12),
    "channels": ("g = Conv<group=8, pads=[1,1,1,1], strides=[1,2]>(a, w2[8,1,3,3], b2[8])", 8),
    "two outputs a channel": ("g = Conv<group=8, dilations=[1,2]>(a, w2[16,1,3,2], b2[16])", 16),
    "no bias": ("g = Conv<group=2>(a, w2[6,4,1,1])", 6),
    "bias behind": ("c = Conv<group=4>(a, w2[8,2,1,1])\n g = Add(c, b2[8,1,1])", 8),
    "transposed groups": ("g = ConvTranspose<group=4, strides=[2,2]>(a, w2[8,3,2,2], b2[12])", 12),
    "transposed channels": ("g = ConvTranspose<group=8, pads=[1,1,1,1]>(a, w2[8,1,3,3], b2[8])", 8),
}


def layered(kind: str) -> ModelProto:
    """The layers of one kind between two that are not."""
    text, made = LAYERS[kind]
    return build(FIRST + text + LAST.format(made=made))


def images(couplings: Couplings, count: int = 60) -> Calibration:
    return gather(couplings.graph, {"x": np.random.default_rng(0).standard_normal((count, 3, 6, 7)).astype(np.float32)})


def shaken(model: ModelProto) -> ModelProto:
    """The model with other numbers in the layers' weights."""
    copy, random = ModelProto(), np.random.default_rng(1)
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in ("w2", "b2"):
            array = np.array(numpy_helper.to_array(tensor))
            other = array + 0.3 * random.standard_normal(array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    return copy


@pytest.mark.parametrize("kind", LAYERS)
def test_weights_that_were_lost_are_found_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From what the blocks read and should make alone, a few samples at a time where memory is short."""
    monkeypatch.setattr(rows, "MOST_NUMBERS", 10_000)
    couplings = couple(read(layered(kind)))
    (step,) = side_by_side_steps(couplings)
    (refit,) = step.refit(shaken(couplings.graph.model), {}, images(couplings), 1)
    assert refit.constants == ("w2", "g.bias" if kind == "no bias" else "b2")
    assert refit.layer.before > 1e-2
    steps_to_what_is_felt = kind == "bias behind"
    assert refit.layer.after < (1e-4 if steps_to_what_is_felt else 1e-8)


@pytest.mark.parametrize("kind", LAYERS)
def test_blocks_that_read_what_was_pruned_are_refitted(kind: str) -> None:
    """Half of every group goes, whole blocks as well as channels of each; the layers behind lose less than before."""
    couplings = couple(read(layered(kind)))
    plan = plan_of(couplings, {group.name: np.arange((group.size + 1) // 2) for group in couplings.groups})
    pruned = rewrite(couplings, plan)
    samples = images(couplings)
    found = repair(couplings, plan, pruned, samples)
    wanted, plain, mended = (
        session_for(model).run(None, samples.at(np.arange(60)))[0]
        for model in (couplings.graph.model, pruned, found.model)
    )
    assert np.square(mended - wanted).sum() < 0.8 * np.square(plain - wanted).sum()
    assert_valid(couplings.graph.model, found.model)
    assert_same_interface(couplings.graph.model, found.model)


def test_channels_by_themselves_are_asked_only_behind_what_has_changed() -> None:
    """A channel that is read alone sums over nothing that could have gone: without drift it stays as it was."""
    couplings = couple(read(layered("channels")))
    (step,) = side_by_side_steps(couplings)
    assert not step.reads & {dim for group in couplings.groups for dim in group.dims}
