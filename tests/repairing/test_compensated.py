"""Pruning with layers refitted: what a run gives, and that the proof still holds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import load_plan
from onnxprune.pipeline import PruneResult, apply, prune
from onnxprune.verifying.verify import Verdict, verify
from tests.bundled import digits, model_path

NAME = "resnet_torchscript"
ONLY_REFITTED = "only refitted weights differ"


@pytest.fixture(scope="module")
def result() -> PruneResult:
    """The residual network at half of its MACs, refitted on a few digits."""
    return prune(model_path(NAME), digits(NAME, 200), macs="50%", criterion="magnitude", compensate=True)


def verdict_on(model: ModelProto, result: PruneResult) -> Verdict:
    """Of another model than the one the result holds."""
    return verify(result.couplings, result.plan, model, digits(NAME, 16))


def test_accuracy_is_kept(result: PruneResult) -> None:
    """Where plain pruning leaves chance, and nearly all layers fit better than before on samples held out."""
    plain = prune(model_path(NAME), digits(NAME, 200), macs="50%", criterion="magnitude", compensate=False)
    assert plain.report.pruned.accuracy is not None
    assert result.report.pruned.accuracy is not None
    assert plain.report.pruned.accuracy < 0.6
    assert result.report.pruned.accuracy > 0.96
    assert sum(layer.penalty is not None for layer in result.report.refitted) > 10
    assert plain.report.refitted == ()


def test_the_proof_holds_but_for_the_refitted_weights(result: PruneResult) -> None:
    """The plan names them; everything else is the plain slices, which equal the zeroed original."""
    checks = {check.name: check for check in result.report.verdict.checks}
    assert result.report.verdict.passed
    assert checks[ONLY_REFITTED].detail == f"{len(result.plan.refitted)} constants"
    assert verdict_on(result.model, result).passed


def test_any_other_weight_that_differs_is_found(result: PruneResult) -> None:
    """One number of a weight that was not refitted, or a node's attribute."""
    touched, turned = ModelProto(), ModelProto()
    for copy in (touched, turned):
        copy.CopyFrom(result.model)
    tensor = next(one for one in touched.graph.initializer if one.name not in result.plan.refitted and len(one.dims))
    numbers = np.array(numpy_helper.to_array(tensor))
    numbers.flat[0] += 1
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    node = next(node for node in turned.graph.node if any(one.name == "pads" for one in node.attribute))
    node.attribute.append(onnx.helper.make_attribute("auto_pad", "NOTSET"))
    for model in (touched, turned):
        (failure,) = (check for check in verdict_on(model, result).checks if check.name == ONLY_REFITTED)
        assert not failure.passed
        assert "differs from the plan's" in failure.detail


def test_a_plan_is_repeated_with_and_without(result: PruneResult, tmp_path: object) -> None:
    """With the same samples the same weights come out; without, the plain slices."""
    again = apply(model_path(NAME), result.plan, digits(NAME, 200), compensate=True)
    assert again.model == result.model
    assert again.plan == result.plan
    plain = apply(model_path(NAME), result.plan, digits(NAME, 200), compensate=False)
    assert plain.plan.refitted == ()
    assert plain.report.verdict.difference < 1e-5
    path = f"{tmp_path}/plan.json"
    result.plan.save(path)
    assert load_plan(path) == result.plan
