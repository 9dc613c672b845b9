"""The plan file: what it holds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.choosing.choose import choose
from onnxprune.choosing.plan import Plan, load_plan, plan_of
from onnxprune.choosing.targets import Targets
from onnxprune.coupling.couple import couple
from onnxprune.errors import PlanError
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import MODELS, bundled
from tests.choosing.graphs import nine_neurons, some_scores, three_layers, widths
from tests.models import build

ADVICE = "Write one with `onnxprune IN OUT --plan FILE`"


def halved(name: str) -> Plan:
    """Half of the channels of every exact group of a bundled model go."""
    return choose(bundled(name), some_scores(bundled(name), 0), Targets(ratio=0.5))


def test_the_file_follows_its_schema() -> None:
    """Format, version, model, groups with their slices, and the kept positions of each sliced initializer."""
    couplings = nine_neurons()
    plan = plan_of(couplings, {"hidden": np.array([0, 3, 8])})
    slices = [{"tensor": "w1", "axis": 1}, {"tensor": "w2", "axis": 0}]
    assert json.loads(plan.to_json()) == {
        "format": "onnxprune-plan",
        "version": 1,
        "model": {"sha256": couplings.graph.sha256, "ir_version": couplings.graph.model.ir_version, "opset": 18},
        "groups": [{"name": "hidden", "size": 9, "kept": [0, 3, 8], "exact": True, "slices": slices}],
        "tensors": {"w1": {"1": [0, 3, 8]}, "w2": {"0": [0, 3, 8]}},
        "refitted": [],
    }


@given(st.integers(0, 10_000), st.floats(0, 0.95))
def test_a_plan_survives_json(tmp_path_factory: pytest.TempPathFactory, seed: int, ratio: float) -> None:
    """What is loaded is what was saved."""
    plan = choose(three_layers(), some_scores(three_layers(), seed), Targets(ratio=ratio))
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    plan.save(path)
    assert load_plan(path) == plan


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_of_a_plan_slice_the_original_weights(name: str) -> None:
    """Slicing the original's weights as `tensors` says gives the pruned model's, for a framework to go on with."""
    couplings, plan = bundled(name), halved(name)
    smaller = couple(read(rewrite(couplings, plan))).graph.constants
    assert plan.tensors
    for tensor, axes in plan.tensors.items():
        if tensor not in couplings.graph.constants:  # one constant of the original, split for uses that differ
            continue
        array = couplings.graph.constants[tensor].array()
        for axis, positions in axes.items():
            array = np.take(array, positions, axis)
        np.testing.assert_array_equal(array, smaller[tensor].array())


def test_inexact_groups_stay_whole_and_are_marked() -> None:
    """The plan lists the groups that are left alone, too."""
    inexact = [group for group in halved("vit_dynamo").groups if not group.exact]
    assert [(group.name, group.size, len(group.kept)) for group in inexact] == [("node_conv2d", 64, 64)]


def test_a_plan_for_another_model_is_refused() -> None:
    """The hash tells, and the message gives both."""
    plan = choose(nine_neurons(), some_scores(nine_neurons(), 0), Targets(ratio=0.5))
    with pytest.raises(PlanError) as refusal:
        rewrite(three_layers(), plan)
    assert str(refusal.value) == (
        f"Plan does not fit this model: it was made for a file with sha256 {plan.model.sha256[:12]}..., this one has "
        f"{three_layers().graph.sha256[:12]}.... Prune the original model, or plan again for this one."
    )


def change(plan: dict[str, Any], **group: Any) -> dict[str, Any]:
    """The plan with its first group changed."""
    return plan | {"groups": [plan["groups"][0] | group, *plan["groups"][1:]]}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda plan: change(plan, name="other"), "there is no group 'other'. The plan was made for another model"),
        (lambda plan: change(plan, size=8), "group 'hidden' has 9 channels, the plan says 8"),
        (lambda plan: change(plan, kept=[]), "group 'hidden' must keep at least one of its 9 channels"),
        (lambda plan: change(plan, kept=[0, 9]), "ascending and each once; the plan keeps (0, 9)"),
        (lambda plan: change(plan, kept=[-1, 3]), "the plan keeps (-1, 3)"),
        (lambda plan: change(plan, kept=[3, 1]), "the plan keeps (3, 1)"),
        (lambda plan: change(plan, kept=[1, 1]), "the plan keeps (1, 1)"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    spoil: Callable[[dict[str, Any]], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    """Groups, sizes and kept channels are held against the model."""
    couplings = nine_neurons()
    plan = json.loads(plan_of(couplings, {}).to_json())
    (tmp_path / "plan.json").write_text(json.dumps(spoil(plan)))
    with pytest.raises(PlanError) as refusal:
        rewrite(couplings, load_plan(tmp_path / "plan.json"))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file: Invalid JSON: EOF while parsing"),
        (b"kept: 1", "the file: Invalid JSON: expected value at line 1 column 1"),
        (b"\xff\xfe\x00", "the file: Invalid JSON"),
        (b"[]", "the file: Input should be"),
        (b"{}", "format: Field required"),
        (b'{"format": "onnxprune-scores"}', "format: Input should be 'onnxprune-plan'"),
        (b'{"format": "onnxprune-plan", "version": 2}', "version: Input should be 1"),
    ],
)
def test_files_that_hold_no_plan_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    """The message gives the file, the place in it, what is wrong, and how to get a plan."""
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(PlanError) as refusal:
        load_plan(path)
    assert str(refusal.value).startswith(f"Expected an onnxprune plan (version 1) in {str(path)!r}; ")
    assert message in str(refusal.value)
    assert ADVICE in str(refusal.value)


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    """The message gives the path."""
    with pytest.raises(
        PlanError, match=r"Expected an onnxprune plan at .*: No such file or directory\. Check the path"
    ):
        load_plan(tmp_path / "plan.json")


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    """A misspelt field would be ignored in silence."""
    plan = json.loads(plan_of(nine_neurons(), {}).to_json())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"keep": [1]}))
    with pytest.raises(PlanError, match="keep: Unexpected keyword argument"):
        load_plan(tmp_path / "plan.json")


def test_pruning_twice_is_pruning_once_with_both() -> None:
    """A plan for the pruned model on top of the first keeps what both keep."""
    model = build("a = Gemm(x[N,4], w1[4,9])\n b = Relu(a)\n y = Gemm(b, w2[9,3])")
    first = couple(read(model))
    once = rewrite(first, plan_of(first, {"a": np.array([0, 2, 4, 6, 8])}))
    second = couple(read(once))
    twice = rewrite(second, plan_of(second, {"a": np.array([1, 3])}))
    assert twice == rewrite(first, plan_of(first, {"a": np.array([2, 6])}))
    assert widths(plan_of(second, {})) == {"a": 5}
