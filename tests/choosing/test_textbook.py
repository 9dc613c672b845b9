"""
The textbook's example: nine channels of sensitivities 1/2, 1/3, ..., 1/10, and those below the median θ go.

The median of nine values is the fifth in order, 1/6 (the article says 1/5). Four lie below it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from onnxprune.choosing.choose import choose
from onnxprune.choosing.plan import load_plan
from onnxprune.choosing.targets import Targets
from onnxprune.cli import main
from tests.choosing.graphs import nine_neurons, scored

SENSITIVITIES = [1 / n for n in range(2, 11)]


def test_the_median_of_the_nine_is_a_sixth() -> None:
    """1/2, 1/3, 1/4, 1/5, then 1/6."""
    assert np.median(SENSITIVITIES) == 1 / 6


@pytest.mark.parametrize("threshold", ["median", 1 / 6, "0.1666"])
def test_the_four_below_the_median_go(threshold: float | str) -> None:
    """1/7, 1/8, 1/9 and 1/10 lie below θ = 1/6; the five others stay."""
    couplings = nine_neurons()
    plan = choose(couplings, scored(couplings, {"hidden": SENSITIVITIES}), Targets(threshold=threshold))
    assert plan.groups[0].kept == (0, 1, 2, 3, 4)


def test_the_order_of_the_channels_does_not_matter() -> None:
    """Shuffled, the same sensitivities stay."""
    couplings, order = nine_neurons(), np.random.default_rng(0).permutation(9)
    shuffled = np.array(SENSITIVITIES)[order]
    plan = choose(couplings, scored(couplings, {"hidden": shuffled}), Targets(threshold="median"))
    assert sorted(shuffled[list(plan.groups[0].kept)], reverse=True) == SENSITIVITIES[:5]


def test_with_the_articles_threshold_five_go() -> None:
    """Below 1/5 lie five sensitivities, so the article's own value would leave four neurons."""
    couplings = nine_neurons()
    plan = choose(couplings, scored(couplings, {"hidden": SENSITIVITIES}), Targets(threshold=1 / 5))
    assert plan.groups[0].kept == (0, 1, 2, 3)


def test_the_mean_is_above_the_median() -> None:
    """The mean of the nine is about 0.214: only 1/2, 1/3 and 1/4 reach it."""
    couplings = nine_neurons()
    plan = choose(couplings, scored(couplings, {"hidden": SENSITIVITIES}), Targets(threshold="mean"))
    assert plan.groups[0].kept == (0, 1, 2)


def test_the_four_go_on_the_command_line(tmp_path: Path) -> None:
    """Scores from a file and `--threshold median` leave a model of five neurons."""
    couplings, out = nine_neurons(), tmp_path / "out.onnx"
    onnx.save(couplings.graph.model, tmp_path / "in.onnx")
    scored(couplings, {"hidden": SENSITIVITIES}).save(tmp_path / "scores.json")
    options = [
        "--scores",
        str(tmp_path / "scores.json"),
        "--threshold",
        "median",
        "--plan",
        str(tmp_path / "plan.json"),
    ]
    outcome = CliRunner().invoke(main, [str(tmp_path / "in.onnx"), str(out), *options])
    assert outcome.exit_code == 0, outcome.output
    assert load_plan(tmp_path / "plan.json").groups[0].kept == (0, 1, 2, 3, 4)
    assert {tensor.name: tuple(tensor.dims) for tensor in onnx.load(out).graph.initializer} == {
        "w1": (4, 5),
        "w2": (5, 3),
    }
