"""The command that every exported model must survive."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxprune
from fixtures.catalog import Entry
from tests.acceptance import RATIO
from tests.cli.conftest import Run


@pytest.mark.parametrize("name", ["hf_bert.legacy", "timm_lcnet_050.legacy"])
def test_the_command_does_the_same(name: str, place: Path, run: Run) -> None:
    """`onnxprune IN OUT --criterion magnitude --ratio 0.3 --plan plan.json` writes what the function gives."""
    path = Entry(name).load(place)
    outcome = run(path, "out.onnx", "--criterion", "magnitude", "--ratio", str(RATIO), "--plan", "plan.json")
    assert outcome.code == 0, outcome.err
    result = onnxprune.prune(path, criterion="magnitude", ratio=RATIO)
    assert Path("out.onnx").read_bytes() == result.model.SerializeToString()
    assert onnxprune.Plan.load("plan.json") == result.plan
