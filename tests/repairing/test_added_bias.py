"""Layers without a bias get one where their node has room for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, NodeProto

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.read import read
from onnxprune.repairing.repair import repair
from onnxprune.rewriting.rewrite import rewrite
from onnxprune.verifying.verify import verify
from tests.models import build

FIRST = "    a = Conv(x[N,3,6,7], w1[8,3,3,3], b1[8])\n    r = Relu(a)\n"
WITH_ROOM = {
    "convolution": "c = Conv(r, w2[6,8,3,3])\n    y = Softmax<axis=1>(c)",
    "transposed convolution": "c = ConvTranspose(r, w2[8,6,3,3])\n    y = Softmax<axis=1>(c)",
    "groups": "c = Conv<group=2>(r, w2[6,4,3,3])\n    y = Softmax<axis=1>(c)",
    "matrix": "p = GlobalMaxPool(r)\n    f = Flatten(p)\n    c = Gemm(f, w2[8,6])\n    y = Softmax(c)",
}
WITHOUT = {
    "matrix product": "p = GlobalMaxPool(r)\n    f = Flatten(p)\n    c = MatMul(f, w2[8,6])\n    y = Softmax(c)",
    "scaled bias": "p = GlobalMaxPool(r)\n    f = Flatten(p)\n    c = Gemm<beta=2.0>(f, w2[8,6])\n    y = Softmax(c)",
}


def repaired(text: str, ir_version: int = 10) -> tuple[Couplings, ModelProto, Calibration, tuple[str, ...]]:
    """Three of eight channels stay in front of the layer that makes `c`."""
    model = build(FIRST + f"    {text}\n")
    model.ir_version = ir_version
    couplings = couple(read(model))
    random = np.random.default_rng(0)
    data = gather(couplings.graph, {"x": random.standard_normal((80, 3, 6, 7)).astype(np.float32)})
    plan = plan_of(couplings, {couplings.groups[0].name: np.array([0, couplings.groups[0].size - 1])})
    found = repair(couplings, plan, rewrite(couplings, plan), data)
    return couplings, found.model, data, found.constants


def maker_of_c(model: ModelProto) -> NodeProto:
    return next(node for node in model.graph.node if "c" in node.output)


@pytest.mark.parametrize("kind", WITH_ROOM)
def test_a_layer_that_could_have_a_bias_gets_one(kind: str) -> None:
    """One number for each output; the model is valid, and the plan's slices but for this."""
    couplings, model, data, constants = repaired(WITH_ROOM[kind])
    assert list(maker_of_c(model).input)[2:] == ["c.bias"]
    (added,) = (tensor for tensor in model.graph.initializer if tensor.name == "c.bias")
    assert list(added.dims) == [6]
    plan = plan_of(couplings, {couplings.groups[0].name: np.array([0, couplings.groups[0].size - 1])})
    assert not verify(couplings, replace(plan, refitted=constants), model, data).failures


@pytest.mark.parametrize("kind", WITHOUT)
def test_no_node_is_added_for_a_bias(kind: str) -> None:
    """Where the operator has no input for one, or does more with it than add it."""
    _, model, _, _ = repaired(WITHOUT[kind])
    assert len(maker_of_c(model).input) == 2


def test_an_input_that_is_named_as_empty_is_room() -> None:
    """Exporters write optional inputs that they leave out as names of no length."""
    model = build(FIRST + f"    {WITH_ROOM['convolution']}\n")
    maker_of_c(model).input.append("")
    couplings = couple(read(model))
    plan = plan_of(couplings, {couplings.groups[0].name: np.array([0, 7])})
    data = gather(couplings.graph, {"x": np.random.default_rng(0).standard_normal((80, 3, 6, 7)).astype(np.float32)})
    found = repair(couplings, plan, rewrite(couplings, plan), data)
    assert list(maker_of_c(found.model).input)[2:] == ["c.bias"]
    assert not verify(couplings, replace(plan, refitted=found.constants), found.model, data).failures


def test_models_whose_constants_are_inputs_get_none() -> None:
    """Before the fourth IR version a new constant would be a new input of the model."""
    _, model, _, _ = repaired(WITH_ROOM["convolution"], ir_version=3)
    assert len(maker_of_c(model).input) == 2
