"""The scores file: what it holds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import PlanError
from onnxprune.probing.probe import probe
from onnxprune.probing.sensitivities import load_scores
from tests.choosing.graphs import nine_neurons, scored

EXAMPLE = {
    "format": "onnxprune-scores",
    "version": 1,
    "groups": [
        {
            "name": "hidden",
            "slices": [{"tensor": "w1", "axis": 1}, {"tensor": "w2", "axis": 0}],
            "scores": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
            "stderr": [0.5] * 9,
        }
    ],
}


def test_the_file_follows_its_schema() -> None:
    """Format, version, and for each group its slices and a score and a standard error for each channel in order."""
    measured = json.loads(probe(nine_neurons(), np.eye(4, dtype=np.float32)).to_json())
    assert measured["format"] == "onnxprune-scores"
    assert measured["version"] == 1
    (group,) = measured["groups"]
    assert list(group) == ["name", "slices", "scores", "stderr"]
    assert (group["name"], group["slices"]) == ("hidden", EXAMPLE["groups"][0]["slices"])
    assert len(group["scores"]) == len(group["stderr"]) == 9


def test_other_programs_may_write_scores(tmp_path: Path) -> None:
    """The fields of the schema are enough."""
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(EXAMPLE))
    assert load_scores(path, nine_neurons()).of("hidden").tolist() == EXAMPLE["groups"][0]["scores"]


@given(st.lists(st.floats(-1e300, 1e300), min_size=9, max_size=9))
def test_scores_survive_json(tmp_path_factory: pytest.TempPathFactory, scores: list[float]) -> None:
    """What is loaded is what was saved, to the last bit."""
    path = tmp_path_factory.mktemp("scores") / "scores.json"
    saved = scored(nine_neurons(), {"hidden": scores})
    saved.save(path)
    assert load_scores(path, nine_neurons()) == saved


def change(**group: Any) -> Callable[[], dict[str, Any]]:
    """The example with its group changed."""
    return lambda: EXAMPLE | {"groups": [EXAMPLE["groups"][0] | group]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (change(name="other"), "they give group 'other' 9 scores, the model has no such group"),
        (change(scores=[1.0] * 8), "they give group 'hidden' 8 scores, the model has 9 channels"),
        (change(stderr=[]), "group 'hidden' has 9 scores and 0 standard errors"),
        (change(scores=[None] * 9), "groups.0.scores.0: Input should be a valid number"),
        (change(scores=[float("nan")] * 9), "group 'hidden' has scores that are not finite"),
        (dict, "format: Field required"),
    ],
)
def test_scores_that_do_not_fit_are_refused(content: Callable[[], Any], message: str, tmp_path: Path) -> None:
    """The message says what does not fit, and how to measure again."""
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(content()))
    with pytest.raises(PlanError) as refusal:
        load_scores(path, nine_neurons())
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "easure again" in str(refusal.value) or "`onnxprune sensitivity" in str(refusal.value)
