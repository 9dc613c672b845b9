"""The benchmarks measure what they say, keep it and write it down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPT = BENCHMARKS / "accuracy.py"


def test_a_cell_is_measured_once_and_written_down(tmp_path: Path) -> None:
    """A dense network at half the MACs keeps most of its accuracy; the same cell is not run again."""
    results, written = tmp_path / "cells.jsonl", tmp_path / "accuracy.md"
    options = ("--models", "mlp", "--targets", "50", "--ways", "default", "--seeds", "1", "--samples", "200")
    first = run(*options, "--results", str(results), "--write", str(written))
    again = run(*options, "--results", str(results))
    assert "[1/1] mlp -50 % default seed 0" in first.stderr
    (cell,) = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    assert (cell["status"], cell["original"]) == ("pruned", 95.25)
    assert 0.45 < cell["macs"] <= 0.5
    assert cell["score"] > 90
    assert first.stdout == again.stdout
    assert again.stderr == ""
    page = written.read_text(encoding="utf-8")
    assert page.startswith(
        f"<!-- Generated: python benchmarks/accuracy.py {' '.join(options)} --write docs/accuracy.md"
    )
    assert first.stdout.splitlines()[2] in page


def test_a_page_says_what_is_met_missed_and_without_a_figure(tmp_path: Path) -> None:
    """A tick or a cross is that of the mean over seeds; reasons stand below the table."""
    results, written = tmp_path / "cells.jsonl", tmp_path / "accuracy.md"
    kept = [
        *(known("vgg", 50, seed, score) for seed, score in enumerate((98.70, 98.70, 98.55))),
        *(known("vgg", 70, seed, score) for seed, score in enumerate((98.40, 98.30, 98.20))),
        *(known("vgg", 85, seed, 0.0, status="unreachable", reason="Too few\nchannels.") for seed in range(3)),
    ]
    results.write_text("".join(f"{json.dumps(cell)}\n" for cell in kept), encoding="utf-8")
    found = run("--models", "vgg", "--ways", "default", "--results", str(results), "--write", str(written))
    assert found.stdout.splitlines()[2:5] == [
        "| `vgg` | 98.80 % | -50 % | ≤ 0.15 | 0.15 ± 0.09 ✓ |",
        "| `vgg` | 98.80 % | -70 % | ≤ 0.4 | 0.50 ± 0.10 ✗ |",
        "| `vgg` | 98.80 % | -85 % | ≤ 1.2 | unreachable |",
    ]
    page = written.read_text(encoding="utf-8")
    assert "meets: 1 of 3." in page
    assert "- `vgg` at -70 %: 0.50 lost, at most 0.4 wanted" in page
    assert "- `vgg` at -85 %, default: unreachable. Too few channels." in page


def test_the_coverage_page_has_a_row_for_each_model(tmp_path: Path) -> None:
    """What is kept in the file of results is not measured again; what is not accepted is listed with the reason."""
    results, written = tmp_path / "rows.jsonl", tmp_path / "coverage.md"
    short = {"name": "mlp_keras", "family": "recurrent", "source": "trained, bundled", "verdict": "it broke"}
    results.write_text(f"{json.dumps(short)}\n", encoding="utf-8")
    options = ("--models", "mlp_keras", "mlp_torch", "--results", str(results), "--write", str(written))
    subprocess.run([sys.executable, str(BENCHMARKS / "coverage.py"), *options], check=True, capture_output=True)
    page = written.read_text(encoding="utf-8").splitlines()
    assert "- `mlp_keras`: it broke" in page
    (row,) = (line for line in page if line.startswith("| `mlp_torch` |"))
    assert row.endswith("| accepted |")
    assert [json.loads(line)["name"] for line in results.read_text().splitlines()] == ["mlp_keras", "mlp_torch"]


def known(model: str, target: int, seed: int, score: float, **rest: str) -> dict[str, Any]:
    """A cell as an earlier run kept it."""
    cell = {"model": model, "target": target, "way": "default", "seed": seed, "samples": 800}
    return {"cell": cell, "original": 98.8, "score": score, "macs": 0.5, "seconds": 1.0} | rest


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """The benchmark, in a process of its own."""
    command = [sys.executable, str(SCRIPT), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8")
