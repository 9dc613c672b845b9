"""Sweeps on the command line, and the options beyond a bound: drops, weights, eight bits."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune.reporting.report import Report
from tests.bundled import digits
from tests.cli.conftest import Run

Refused = Callable[..., str]

QUICK = "--data data.npz --criterion obs --allocation uniform"
"""No probes."""


@pytest.fixture
def many(place: Path) -> str:
    """The quick options with a thousand digits, enough to judge on half of them."""
    np.savez("many.npz", **digits("mlp_torch", 1000))
    return QUICK.replace("data.npz", "many.npz")


def report(path: str) -> dict:
    return json.loads(Path(path).read_text())


# Files and table


def test_a_sweep_fills_a_folder(done: Run) -> None:
    """For each bound a model, its plan and its report; a table, and a plot where it can be drawn."""
    done(f"sweep model.onnx deep/er/out --macs 80%,0.5,30K {QUICK}")
    folder = Path("deep/er/out")
    names = {f"macs-{bound}.{kind}" for bound in ("80", "0.5", "30K") for kind in ("onnx", "plan.json", "report.json")}
    drawn = {"sweep.svg"} if importlib.util.find_spec("matplotlib") else set()
    assert {path.name for path in folder.iterdir() if path.name != ".onnxprune"} == names | {"sweep.csv"} | drawn
    for bound, share in (("80", 0.8), ("0.5", 0.5), ("30K", 30_000 / 101_632)):
        told = report(f"{folder}/macs-{bound}.report.json")
        assert share - 0.01 < told["pruned"]["macs"] / told["original"]["macs"] <= share
        assert onnx.load(folder / f"macs-{bound}.onnx").ByteSize() == told["pruned"]["bytes"]


def test_each_model_is_that_of_the_command_alone(done: Run) -> None:
    """Bit for bit; and its plan applies."""
    done(f"sweep model.onnx out --macs 80%,50% {QUICK}")
    done(f"model.onnx alone.onnx --macs 50% --plan alone.json {QUICK}")
    assert Path("alone.onnx").read_bytes() == Path("out/macs-50.onnx").read_bytes()
    assert Path("alone.json").read_text() == Path("out/macs-50.plan.json").read_text()
    done("apply model.onnx again.onnx --plan out/macs-80.plan.json --data data.npz")
    assert Path("again.onnx").read_bytes() == Path("out/macs-80.onnx").read_bytes()


def test_without_bounds_there_are_four(done: Run) -> None:
    """From 90 % down to 30 %."""
    done("sweep model.onnx out --criterion random")
    assert sorted(path.name for path in Path("out").glob("*.onnx")) == [f"macs-{n}.onnx" for n in (30, 50, 70, 90)]


def test_the_table_says_what_the_reports_say(done: Run) -> None:
    """On the terminal and as values; a line for each model."""
    outcome = done(f"sweep model.onnx out --macs 80%,50% {QUICK}")
    with Path("out/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["bound"] for row in rows] == ["80%", "50%"]
    for row in rows:
        told = report(f"out/macs-{row['bound'][:-1]}.report.json")
        assert float(row["macs"]) == told["pruned"]["macs"] / told["original"]["macs"]
        assert int(row["bytes"]) == told["pruned"]["bytes"]
        assert row["metric"] == "accuracy"
        assert float(row["figure"]) == told["pruned"]["accuracy"]
        assert float(row["original"]) == told["original"]["accuracy"]
    lines = [line.split() for line in outcome.out.splitlines()]
    assert [line[:2] for line in lines[1:3]] == [["80%", "79.7%"], ["50%", "50.0%"]]
    assert lines[0][-2:] == ["accuracy", "change"]
    assert outcome.out.rstrip().endswith("Each model passed its own check. Written to out")


def test_a_sweep_that_is_judged_shows_what_was_judged(done: Run, place: Path) -> None:
    """By the metric asked for, on samples of their own."""
    np.savez("other.npz", **{name: array[64:] for name, array in digits("mlp_torch", 800).items()})
    done(f"sweep model.onnx out --macs 80%,10% {QUICK} --eval-data other.npz --metric agreement")
    with Path("out/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["agreement"] * 2
    assert [float(row["original"]) for row in rows] == [1.0, 1.0]
    assert float(rows[1]["figure"]) < float(rows[0]["figure"])


def test_the_plot_is_an_image(done: Run) -> None:
    """With a point for each bound."""
    pytest.importorskip("matplotlib")
    done(f"sweep model.onnx out --macs 80%,50% {QUICK}")
    drawn = Path("out/sweep.svg").read_text()
    assert drawn.startswith("<?xml")
    assert "<svg" in drawn


def test_without_matplotlib_there_is_no_plot(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else is missing."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done("sweep model.onnx out --macs 80% --criterion random")
    assert Path("out/sweep.csv").exists()
    assert not Path("out/sweep.svg").exists()


def test_notes_are_told_once(done: Run) -> None:
    """Not once for each model; quiet, not at all."""
    outcome = done("sweep model.onnx out --macs 80%,60% --criterion magnitude")
    assert outcome.err.count("No calibration data") == 1
    outcome = done("sweep model.onnx out --macs 80%,60% --criterion magnitude --quiet")
    assert (outcome.out, outcome.err) == ("", "")


def test_a_sweep_takes_further_steps(done: Run) -> None:
    """Weights and eight bits, at every bound."""
    done(f"sweep model.onnx out --macs 60%,50% {QUICK} --criterion magnitude --weights 20% --quantize int8")
    for bound in (60, 50):
        told = report(f"out/macs-{bound}.report.json")
        assert told["weights"]["zeros"] >= 0.2 * told["weights"]["size"]
        assert told["quantized"]["figures"]["bytes"] == Path(f"out/macs-{bound}.onnx").stat().st_size


# Mistakes in sweeps


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("out --macs 50%,50%", 2, "Expected bounds on the MACs or the latency, each once, found 50%, 50%."),
        ("out --macs 50%,50", 2, "Expected bounds on the MACs or the latency, each once, found 50%, 50."),
        ("out --latency 50%,x", 2, "Expected for latency a share up to 100% such as 50% or 0.5, or milliseconds"),
        ("out --latency 2ms --macs 50%,50%", 2, "found 50%, 50%, latency 2ms."),
        ("out --macs ,", 2, "Expected bounds on the MACs or the latency, each once, found none."),
        ("out --macs 50%,half", 2, "Expected for macs a share up to 100% "),
        ("out --macs 50%,1/2", 2, "Expected for macs a share up to 100% "),
        ("out --macs 50%,0.1% --criterion random", 1, "Expected macs of at most 102 (0.1%), the least reachable is "),
        ("out --params 50%", 2, "No such option '--params'"),
        ("out --max-drop 1%", 2, "No such option '--max-drop'"),
        ("model.onnx", 2, "Expected a folder to write to at 'model.onnx': File exists."),
        ("data.npz/out", 2, "Expected a folder to write to at 'data.npz/out': Not a directory."),
        ("out --data none.npz", 1, "none.npz"),
        ("out --rounds 0", 2, "Invalid value for '--rounds'"),
    ],
)
def test_a_sweep_is_refused_whole(line: str, code: int, message: str, refused: Refused) -> None:
    """Nothing is written, not even a folder, if one bound is at fault."""
    assert message in refused(f"sweep model.onnx {line}", code=code)


def test_what_lies_in_the_folder_stays_when_a_sweep_is_refused(refused: Refused) -> None:
    """Models of an earlier sweep as well."""
    Path("out").mkdir()
    Path("out/macs-50.onnx").write_text("an earlier model")
    refused("sweep model.onnx out --macs 50%,0.1% --criterion random", code=1)


def test_a_sweep_never_writes_over_its_model(refused: Refused, place: Path) -> None:
    """Though it lies in the folder under such a name."""
    Path("out").mkdir()
    (place / "model.onnx").rename("out/macs-50.onnx")
    assert "is an input, and inputs are never touched" in refused("sweep out/macs-50.onnx out --macs 50%", code=2)


# Beyond a bound


def test_max_drop_searches(done: Run, many: str) -> None:
    """What was judged is shown, with every model on the way, and is in the report."""
    outcome = done(f"model.onnx out.onnx --max-drop 3% --confidence 90% {many} --json report.json")
    told = report("report.json")
    assert (told["judgement"]["limit"], told["judgement"]["confidence"]) == (0.03, 0.9)
    assert told["judgement"]["drop"]["upper"] <= 0.03
    assert told["pruned"]["macs"] < told["original"]["macs"]
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert any(line.startswith("accuracy on ") and "samples that pruning did not use" in line for line in lines)
    assert sum("of the MACs: kept" in line for line in lines) == sum(
        trial["accepted"] for trial in told["judgement"]["trials"]
    )
    assert any(line.startswith("this model: ") for line in lines)


def test_data_alone_mean_one_per_cent(done: Run, many: str) -> None:
    """Without a word."""
    done(f"model.onnx out.onnx {many} --json report.json")
    assert report("report.json")["settings"]["max drop"] == 0.01


def test_a_bound_that_loses_too_much_writes_nothing(refused: Refused, many: str) -> None:
    """The user hears how much, and what to do."""
    message = refused(f"model.onnx out.onnx --macs 2% --max-drop 1% {many} --plan p.json --json r.json", code=1)
    assert message.startswith("Expected a drop of at most 0.01 at a confidence of 0.95 in accuracy, found a drop of ")
    assert message.endswith("Prune less, allow more with --max-drop, or judge on more samples with --eval-data.")


def test_metrics_of_the_users_own_are_found_beside_the_command(done: Run, many: str) -> None:
    """As MODULE:FUNCTION, in the folder where the command runs."""
    Path("my_metric_for_sweeps.py").write_text(
        "def sure(outputs, labels):\n    return outputs['probabilities'].max(1)\n"
    )
    metric = "my_metric_for_sweeps:sure"
    done(f"model.onnx out.onnx --macs 70% --max-drop 20% --metric {metric} {many} --json report.json")
    judgement = report("report.json")["judgement"]
    assert judgement["metric"] == metric
    assert 0.5 < judgement["original"] < 1


def test_weights_are_shown_and_stored_sparsely(done: Run, place: Path) -> None:
    """Zeros in the table; the file is as small as it says; and `verify` still proves it."""
    options = "--data data.npz --criterion magnitude --weights 90% --plan plan.json --json report.json"
    outcome = done(f"model.onnx out.onnx {options} --sparse")
    told = report("report.json")["weights"]
    lines = [" ".join(line.split()) for line in outcome.out.splitlines()]
    assert f"zeros (no faster on dense kernels) {told['zeros']:,} of {told['size']:,} 90.0%" in lines
    assert (place / "out.onnx").stat().st_size == told["bytes_sparse"]
    done(f"model.onnx dense.onnx {options}")
    done("verify model.onnx dense.onnx --plan plan.json --data data.npz")


def test_eight_bits_are_shown(done: Run) -> None:
    """Bytes and latency of the file that is written."""
    outcome = done(f"model.onnx out.onnx --macs 50% --quantize int8 {QUICK} --json report.json")
    told = report("report.json")["quantized"]
    assert told["figures"]["bytes"] == Path("out.onnx").stat().st_size
    assert "after int8" in outcome.out


def test_rounds_and_allocations_are_taken(done: Run) -> None:
    """And told."""
    for option, told in (("--rounds 2", 2), ("", None)):
        line = f"--data data.npz --probe-samples 2 --jobs 1 --macs 60% {option} --allocation curves"
        done(f"model.onnx out.onnx {line} --json report.json")
        assert report("report.json")["settings"]["rounds"] == told
        assert report("report.json")["settings"]["allocation"] == "curves"
    assert set(report("report.json")) == set(Report.__dataclass_fields__)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--max-drop 1% --confidence 30%", 2, "Expected for confidence a share above 50% and below 100%"),
        (
            "--max-drop 200%",
            2,
            "Expected for max-drop a share above 0% and below 100% such as 1% or",
        ),
        ("--max-drop no", 2, "Expected for max-drop a share above 0% and below 100%"),
        ("--weights 100%", 2, "Expected for weights a share from 0% to below 100% such as 50% or 0.5, or a pattern"),
        ("--weights 4:2", 2, "Expected for weights a share from 0% to below 100%"),
        ("--sparse", 2, "Expected weights to store sparsely, found none removed. Say how many: --weights 80%."),
        ("--weights 50% --sparse --quantize int8", 2, "Expected sparse tensors or eight bits, found both. Leave out "),
        ("--quantize int4", 2, "Invalid value for '--quantize': 'int4' is not 'int8'"),
        ("--rounds 0", 2, "Invalid value for '--rounds': 0 is not in the range x>=1"),
        ("--allocation fair", 2, "Invalid value for '--allocation'"),
        ("--criterion taste", 2, "Invalid value for '--criterion'"),
        ("--max-drop 90% --metric charm", 2, "Expected a metric among "),
        ("--max-drop 90% --metric json:no_such", 2, "Expected a function 'no_such' in the module 'json'"),
        ("--max-drop 1%", 1, "Expected at least 598 samples, half of them to show "),
        ("--eval-data data.npz --macs 50%", 1, "Expected at least 299 samples to judge on, to show "),
        ("--macs 50% --allocation global --criterion random", 2, "Expected for allocation global scores that are loss"),
    ],
)
def test_mistakes_are_refused(options: str, code: int, message: str, refused: Refused) -> None:
    """Each with one clear message."""
    assert message in refused(f"model.onnx out.onnx --data data.npz {options}", code=code)


@pytest.mark.parametrize("option", ["--confidence 30%", "--confidence sure"])
def test_a_confidence_is_checked_where_nothing_is_judged(option: str, refused: Refused) -> None:
    """A slip of the pen is a slip of the pen."""
    message = refused(f"model.onnx out.onnx --criterion random --macs 50% {option}", code=2)
    assert message.startswith("Expected for confidence a share above 50% and below 100% such as 95% or 0.95, found ")


def test_a_metric_is_checked_where_nothing_is_judged(refused: Refused) -> None:
    """A slip of the pen is a slip of the pen."""
    refused("model.onnx out.onnx --criterion random --macs 50% --metric charm", code=2)


@pytest.mark.parametrize("name", ["macs-50.plan.json", "macs-50.report.json", "sweep.csv", "sweep.svg"])
def test_a_sweep_never_writes_over_what_it_reads(name: str, refused: Refused, place: Path) -> None:
    """Whatever the file is: it is refused before any work."""
    (place / "models").mkdir()
    (place / "data.npz").rename(place / "models" / name)
    message = refused(f"sweep model.onnx models --macs 50% --data models/{name}", code=2)
    assert "is an input, and inputs are never touched" in message
