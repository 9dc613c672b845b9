"""
How much faster pruned models are: latency beside what was asked for, and beside widths that no one aligned.

    python benchmarks/latency.py --write docs/latency.md      # six architectures, about half an hour on two cores

Each model is filled with seeded weights and pruned by magnitude to bounds on the latency and on the MACs; for these
also to the same bound with any width (`--multiple-of 1`), as pruners do that do not look at time. Then the original and
all that came of it are run in turn, one after another, in rounds, and ratios are taken round by round: the table has
their median and middle half, with all threads and with one. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from fixtures.zoo.seeded import fill  # noqa: E402
from onnxprune.probing.calibration import gather  # noqa: E402
from onnxprune.timing.sessions import options_for, timed_session  # noqa: E402
from onnxprune.timing.setting import Setting, machine  # noqa: E402
from onnxprune.timing.whole import run_at  # noqa: E402

MODELS = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "bert_base", "detector")
TOKENS = np.zeros((4, 128), np.int64)
DATA: dict[str, dict[str, np.ndarray]] = {"bert_base": {"ids": TOKENS, "mask": np.ones_like(TOKENS)}}
BOUNDS = (("latency", 0.7), ("latency", 0.5), ("macs", 0.7), ("macs", 0.5), ("macs", 0.3))
UNALIGNED = "any width"
SECONDS = 20.0
"""Of timing, for all models pruned from one original, in each setting."""

NEAR, BESIDE = 0.05, 0.08
"""A bound on the latency is met within this share; under one on the MACs, latency is at most so much above theirs."""


@dataclass(frozen=True)
class Pruned:
    """A model, what it was asked for, its MACs as a share, and what was predicted of its latency."""

    bound: str
    share: float
    model: ModelProto
    macs: float
    predicted: float | None


@dataclass(frozen=True)
class Ratio:
    """Median of latency over the original's, and the middle half."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f}-{self.high:.2f})"


def pruned_models(path: Path, data: dict[str, np.ndarray] | None) -> Iterator[Pruned]:
    """Every model that is made of one."""
    for name, share in BOUNDS:
        for step in ("auto", 1) if name == "macs" else ("auto",):
            options: dict[str, Any] = {name: share, "multiple_of": step}
            result = onnxprune.prune(
                path, data, criterion="magnitude", allocation="uniform", compensate=False, **options
            )
            report = result.report
            predicted = report.speed.predicted if report.speed else None
            label = name if step == "auto" else UNALIGNED
            macs = report.pruned.macs / report.original.macs
            print(f"  {label} {share:.0%}: {macs:.3f} of the MACs", file=sys.stderr)
            yield Pruned(label, share, result.model, macs, predicted)


def in_turn(models: Sequence[ModelProto], data: dict[str, np.ndarray] | None, setting: Setting) -> list[Ratio]:
    """Latency of each over that of the first."""
    graph = onnxprune.read(models[0]) if data is None else onnxprune.read(models[0], input_shapes=shapes(data))
    feeds, _ = run_at(gather(graph, data), setting)
    sessions = [timed_session(model, setting, options_for(setting)) for model in models]
    for session in sessions:
        session.run(None, feeds)
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < 15 or time.perf_counter() - start < SECONDS:
        turn = []
        for session in sessions:
            before = time.perf_counter()
            session.run(None, feeds)
            turn.append(time.perf_counter() - before)
        rounds.append(turn)
    table = np.array(rounds)
    ratios = table / table[:, :1]
    return [Ratio(*map(float, np.percentile(column, (50, 25, 75)))) for column in ratios.T]


def shapes(data: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in data.items()}


def rows_of(name: str, folder: Path) -> Iterator[list[str]]:
    """The table's rows for one model."""
    path, data = folder / f"{name}.onnx", DATA.get(name)
    onnx.save(fill((ROOT / f"fixtures/zoo/{name}.onnx.xz").read_bytes()), path)
    print(name, file=sys.stderr)
    found = list(pruned_models(path, data))
    models = [onnx.load(path), *(one.model for one in found)]
    many, one = (in_turn(models, data, Setting(threads=threads))[1:] for threads in (0, 1))
    plain = {pruned.share: number for number, pruned in enumerate(found) if pruned.bound == UNALIGNED}
    for number, pruned in enumerate(found):
        if pruned.bound == UNALIGNED:
            continue
        beside = plain.get(pruned.share) if pruned.bound == "macs" else None
        yield [
            name,
            f"{pruned.bound} {pruned.share:.0%}",
            f"{pruned.macs:.3f}",
            f"{pruned.predicted:.2f}" if pruned.predicted is not None else "",
            f"{many[number]} {tick(pruned, many[number])}",
            f"{one[number]}" + (f" {tick(pruned, one[number])}" if pruned.bound == "macs" else ""),
            str(many[beside]) if beside is not None else "",
            str(one[beside]) if beside is not None else "",
        ]


def tick(pruned: Pruned, ratio: Ratio) -> str:
    """Is it as fast as it should be? A bound on the latency is one with all threads."""
    met = ratio.middle <= (pruned.share * (1 + NEAR) if pruned.bound == "latency" else pruned.macs + BESIDE)
    return "✓" if met and ratio.middle <= 1 else "✗"


HEADINGS = ("model", "bound", "MACs", "predicted", "latency", "one thread", UNALIGNED, f"{UNALIGNED}, one thread")
HEAD = f"""
<!-- Generated: python benchmarks/latency.py --write docs/latency.md -->

# Latency

Six architectures with seeded weights, pruned by magnitude: `onnxprune IN OUT --criterion magnitude --latency 50%` and
so on. Ratios are latencies over the original's, all models of a row run in turn, the median and the middle half over
the rounds; batch 1, {{setting}}. A tick says that a bound on the latency (of all
threads) is met within {NEAR:.0%}, or that under a bound on the MACs latency is at most {BESIDE} above the share of the
MACs; and that it is below the original's. *{UNALIGNED.capitalize()}* is the same bound with `--multiple-of 1`: widths
as they come, what a pruner does that does not look at time.

"""


def main() -> None:
    """Measure, print the table, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=MODELS, choices=MODELS)
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page for the documentation")
    options = parser.parse_args()
    lines = ["| " + " | ".join(HEADINGS) + " |", "| --- | --- |" + " --: |" * (len(HEADINGS) - 2)]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            for row in rows_of(name, Path(folder)):
                lines.append("| " + " | ".join(row) + " |")
                print(lines[-1], flush=True)
    if options.write:
        setting = f"ONNX Runtime {onnxruntime.__version__}, {machine().split()[1].removeprefix('x')} cores"
        options.write.write_text(HEAD.lstrip().format(setting=setting) + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
