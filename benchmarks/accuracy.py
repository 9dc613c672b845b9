"""
What models still do after pruning on calibration digits alone, and what each part of the way contributes.

    python benchmarks/accuracy.py --results cells.jsonl --write docs/accuracy.md            # all of it: hours
    python benchmarks/accuracy.py --models mlp resnet20 --targets 50 --ways default --seeds 1

A *cell* is one run of `prune`: a model, the per cent of its MACs to remove, a way, and a seed, which draws the
calibration digits. Its figures are taken on test digits that pruning never sees; `prune` gets no labels. Cells run in
processes of one thread each, so that they do not disturb one another. The table goes to stdout, each cell to stderr
when it is done and, as a line of JSON, into the file of `--results`. Cells found there are not run again, so throw the
file away when the code has changed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

import onnxprune
from onnxprune.errors import TargetError

FIXTURES = Path(__file__).parent.parent / "fixtures"
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")
NOISE = 0.3
"""Standard deviation of the noise that the U-Net is to remove, as in `digits/denoise_test.npz`."""

BATCH = 250
EPSILON = 1e-9

Unit = Literal["points", "dB"]


@dataclass(frozen=True, slots=True)
class Digits:
    """Inputs to calibrate with and inputs to score on, with what is expected of those: classes, or clean digits."""

    calibration: np.ndarray
    test: np.ndarray
    expected: np.ndarray

    @property
    def unit(self) -> Unit:
        """In which losses count: points of accuracy, or of the peak signal-to-noise ratio."""
        return "points" if self.expected.ndim == 1 else "dB"


@cache
def normalized() -> Digits:
    """As the models in `bench` take them."""
    calibration, test = (np.load(FIXTURES / f"bench/{name}.npz") for name in ("calib", "test"))
    return Digits(scaled(calibration["x"]), scaled(test["x"]), test["y"])


def scaled(pixels: np.ndarray) -> np.ndarray:
    return ((pixels[:, None] / 255 - 0.1307) / 0.3081).astype(np.float32)


@cache
def normalized_flat() -> Digits:
    """The same, each a row of numbers."""
    digits = normalized()
    return Digits(digits.calibration.reshape(-1, 784), digits.test.reshape(-1, 784), digits.expected)


@cache
def plain() -> Digits:
    """As the other classifiers take them."""
    calibration, test = (np.load(FIXTURES / f"digits/{name}.npz") for name in ("calibration", "test"))
    return Digits(calibration["x"], test["x"], test["labels"])


@cache
def noisy() -> Digits:
    """Digits with noise, as the U-Net takes them."""
    test = np.load(FIXTURES / "digits/denoise_test.npz")
    clean = plain().calibration
    noise = np.random.default_rng(0).normal(0, NOISE, clean.shape)
    return Digits(np.clip(clean + noise, 0, 1).astype(np.float32), test["x"], test["target"])


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, with the most that it may lose for per cents of its MACs."""

    what: str
    digits: Callable[[], Digits]
    wanted: Mapping[int, float] = field(default_factory=dict)
    folder: str = ""
    targets: tuple[int, ...] = (50, 70, 85)


CNN = {50: 0.15, 70: 0.4, 85: 1.2}
MLP = {50: 0.0, 70: 1.0}
VIT = {30: 0.7, 50: 2.0, 70: 5.0}
RECURRENT = {50: 0.5, 70: 2.0}
MORE = (30, 50, 70, 85)

SUBJECTS = {
    "mlp": Subject("dense 784-128-10", normalized_flat, MLP, "bench"),
    "vgg": Subject("plain CNN, 6 Conv and 2 Gemm", normalized, CNN, "bench"),
    "resnet20": Subject("residual CNN, 9 blocks", normalized, CNN, "bench"),
    "vit": Subject("vision transformer, 4 blocks", normalized, VIT, "bench", MORE),
    "resnet_torchscript": Subject("residual CNN with depthwise and squeeze-and-excite blocks", plain, CNN),
    "vit_torchscript": Subject("vision transformer, 3 blocks", plain, VIT, targets=MORE),
    "lstm_torch": Subject("LSTM 64 over the rows, PyTorch", plain, RECURRENT),
    "lstm_keras": Subject("LSTM 64 over the rows, Keras", plain, RECURRENT),
    "gru_torch": Subject("two bidirectional GRU layers 32", plain, RECURRENT),
    "unet_torch": Subject("U-Net that removes noise", noisy),
}

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "no-repair": {"compensate": False},
    "magnitude": {"criterion": "magnitude"},
    "activation": {"criterion": "activation"},
    "sensitivity": {"criterion": "sensitivity"},
    "obs": {"criterion": "obs"},
    "uniform": {"allocation": "uniform"},
    "one-round": {"rounds": 1},
    "random": {"criterion": "random"},
}
"""What is asked of `prune` besides the bound on MACs."""

SECONDS_WANTED = ("resnet20", 50, 60)
"""The model, the target and the seconds that its whole run may take."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of `prune`; `target` is the per cent of MACs to remove, `samples` how many digits it may see."""

    model: str
    target: int
    way: str
    seed: int
    samples: int

    def __str__(self) -> str:
        return f"{self.model} -{self.target} % {self.way} seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell: accuracy in per cent or PSNR in dB, the share of MACs left, or why there is none of it."""

    cell: Cell
    original: float
    score: float
    macs: float
    seconds: float
    status: Literal["pruned", "unreachable", "failed"] = "pruned"
    reason: str = ""

    @property
    def lost(self) -> float:
        return self.original - self.score

    def __str__(self) -> str:
        if self.status != "pruned":
            return f"{self.cell}: {self.status}: {self.reason}"
        return f"{self.cell}: {self.lost:.2f} lost, {self.macs:.1%} of the MACs left, {self.seconds:.1f} s"


def main() -> None:
    options = parsed(sys.argv[1:])
    cells = cells_of(options)
    if options.known_only:
        cells = [cell for cell in cells if cell in stored(options.results)]
    outcomes = list(run(cells, options.jobs, options.results))
    text = page(outcomes, options)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    print(table(outcomes, options.ways))
    print()
    print(costs(outcomes, options.ways))


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Accuracy after pruning on calibration digits alone.")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="MODEL")
    parser.add_argument("--targets", nargs="+", type=int, metavar="PERCENT", help="of the MACs, to remove")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, default=3, help="random subsets of the calibration digits")
    parser.add_argument("--seeds-beside", type=int, help="the same for ways other than the default one")
    parser.add_argument("--samples", type=int, default=800, help="digits in a subset; of fewer, 80 %% are drawn")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--results", type=Path, help="file that keeps the cells")
    parser.add_argument("--known-only", action="store_true", help="run nothing: what the results file holds")
    parser.add_argument("--write", type=Path, help="page to write")
    return parser.parse_args(arguments)


def cells_of(options: argparse.Namespace) -> list[Cell]:
    """The default way first, so that what matters most is there first; then seed by seed."""
    beside = options.seeds if options.seeds_beside is None else options.seeds_beside
    cells = [
        Cell(model, target, way, seed, options.samples)
        for model in options.models
        for target in options.targets or SUBJECTS[model].targets
        for way in options.ways
        for seed in range(options.seeds if way == "default" else beside)
    ]
    return sorted(cells, key=lambda cell: (cell.way != "default", cell.seed))


def run(cells: Sequence[Cell], jobs: int, results: Path | None) -> Iterator[Outcome]:
    """What came of every cell, those that are known first."""
    known = stored(results) if results else {}
    missing = [cell for cell in cells if cell not in known]
    yield from (known[cell] for cell in cells if cell in known)
    os.environ.update(ONE_THREAD)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measured, cell) for cell in missing]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                keep(future.result(), results)
                print(f"[{number}/{len(missing)}] {future.result()}", file=sys.stderr, flush=True)
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def stored(results: Path) -> dict[Cell, Outcome]:
    """The cells of an earlier run, but for those that failed: these are tried again."""
    lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
    outcomes = [outcome_of(json.loads(line)) for line in lines]
    return {outcome.cell: outcome for outcome in outcomes if outcome.status != "failed"}


def outcome_of(record: dict[str, Any]) -> Outcome:
    return Outcome(**record | {"cell": Cell(**record["cell"])})


def keep(outcome: Outcome, results: Path | None) -> None:
    if results:
        with results.open("a", encoding="utf-8") as file:
            print(json.dumps(asdict(outcome)), file=file)


def measured(cell: Cell) -> Outcome:
    """Prune a model and score it; whatever goes wrong is a result too, and others go on."""
    original = original_score(cell.model)
    try:
        return scored(cell, original)
    except TargetError as error:
        return Outcome(cell, original, 0.0, 0.0, 0.0, "unreachable", str(error))
    except Exception as error:
        return Outcome(cell, original, 0.0, 0.0, 0.0, "failed", f"{type(error).__name__}: {error}")


def scored(cell: Cell, original: float) -> Outcome:
    digits = SUBJECTS[cell.model].digits()
    seen = subset(digits.calibration, cell)
    bound = (100 - cell.target) / 100
    start = time.perf_counter()
    result = onnxprune.prune(
        model_path(cell.model), seen, macs=bound, seed=cell.seed, threads=1, jobs=1, **WAYS[cell.way]
    )
    seconds = time.perf_counter() - start
    left = result.report.pruned.macs / result.report.original.macs
    if left > bound + EPSILON:
        reason = f"{left:.1%} of the MACs are left, at most {bound:.0%} were asked for."
        return Outcome(cell, original, 0.0, left, seconds, "failed", reason)
    return Outcome(cell, original, score_of(result.model.SerializeToString(), digits), left, seconds)


def model_path(name: str) -> Path:
    return FIXTURES / SUBJECTS[name].folder / f"{name}.onnx"


def subset(digits: np.ndarray, cell: Cell) -> np.ndarray:
    """Digits drawn at random."""
    count = cell.samples if len(digits) >= cell.samples else len(digits) * 4 // 5
    return digits[np.random.default_rng(cell.seed).choice(len(digits), count, replace=False)]


@cache
def original_score(name: str) -> float:
    return score_of(model_path(name).read_bytes(), SUBJECTS[name].digits())


def score_of(model: bytes, digits: Digits) -> float:
    """Accuracy on the test digits in per cent, or for images the peak signal-to-noise ratio in dB."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    batches = range(0, len(digits.test), BATCH)
    found = np.concatenate([session.run(None, {entry.name: digits.test[i : i + BATCH]})[0] for i in batches])
    if digits.unit == "points":
        return float(100 * np.mean(found.argmax(1) == digits.expected))
    return float(-10 * np.log10(np.mean((found - digits.expected) ** 2)))


Rows = dict[tuple[str, int], dict[str, list[Outcome]]]


def rows_of(outcomes: Iterable[Outcome]) -> Rows:
    """Outcomes by model and target, then by way, in the order of the models."""
    rows: Rows = {}
    order = list(SUBJECTS)
    for outcome in sorted(outcomes, key=lambda one: (order.index(one.cell.model), one.cell.target, one.cell.seed)):
        row = rows.setdefault((outcome.cell.model, outcome.cell.target), {})
        row.setdefault(outcome.cell.way, []).append(outcome)
    return rows


def table(outcomes: Sequence[Outcome], ways: Sequence[str]) -> str:
    """What is lost, beside what may be."""
    head = ("model", "original", "MACs", "to reach", *map(spoken, ways))
    return markdown(head, [loss_row(*key, row, ways) for key, row in rows_of(outcomes).items()])


def loss_row(model: str, target: int, row: Mapping[str, Sequence[Outcome]], ways: Sequence[str]) -> tuple[str, ...]:
    wanted = SUBJECTS[model].wanted.get(target)
    unit = "%" if SUBJECTS[model].digits().unit == "points" else "dB"
    original = next(iter(row.values()))[0].original
    bound = "" if wanted is None else f"≤ {wanted:g}"
    lost = [loss_text(row.get(way, ()), wanted if way == "default" else None) for way in ways]
    return (f"`{model}`", f"{original:.2f} {unit}", f"-{target} %", bound, *lost)


def loss_text(outcomes: Sequence[Outcome], wanted: float | None) -> str:
    """Mean and standard deviation of what is lost, with a tick or a cross where there is something to reach."""
    if problem := problem_of(outcomes):
        return problem
    lost = [outcome.lost for outcome in outcomes]
    mark = "" if wanted is None else " ✓" if met(outcomes, wanted) else " ✗"
    return mean_text(lost) + mark


def met(outcomes: Sequence[Outcome], wanted: float) -> bool:
    return not problem_of(outcomes) and mean_lost(outcomes) <= wanted + EPSILON


def mean_lost(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.lost for outcome in outcomes]))


def problem_of(outcomes: Sequence[Outcome]) -> str:
    """Why there is no figure, or nothing."""
    if not outcomes:
        return "-"
    return next((outcome.status for outcome in outcomes if outcome.status != "pruned"), "")


def mean_text(numbers: Sequence[float]) -> str:
    mean = f"{np.mean(numbers) + 0.0:.2f}"
    return mean if len(numbers) == 1 else f"{mean} ± {np.std(numbers, ddof=1):.2f}"


def costs(outcomes: Sequence[Outcome], ways: Sequence[str]) -> str:
    """MACs that are left and seconds of the whole run."""
    head = ("model", "MACs", *map(spoken, ways))
    return markdown(
        head,
        [
            (f"`{model}`", f"-{target} %", *(cost_text(row.get(way, ())) for way in ways))
            for (model, target), row in rows_of(outcomes).items()
        ],
    )


def cost_text(outcomes: Sequence[Outcome]) -> str:
    if problem := problem_of(outcomes):
        return problem
    left = np.mean([outcome.macs for outcome in outcomes])
    return f"{left:.1%}, {mean_seconds(outcomes):.0f} s"


def mean_seconds(outcomes: Sequence[Outcome]) -> float:
    return float(np.mean([outcome.seconds for outcome in outcomes]))


def spoken(way: str) -> str:
    return way.replace("-", " ")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose columns, but for the first one, stand at the right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(outcomes: Sequence[Outcome], options: argparse.Namespace) -> str:
    """The tables with what a reader should know of them."""
    parts = {
        "command": command(options),
        "subjects": subjects(outcomes),
        "table": table(outcomes, options.ways),
        "summary": summary(outcomes),
        "costs": costs(outcomes, options.ways),
        "samples": options.samples,
        "jobs": options.jobs,
        "cores": os.cpu_count(),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("onnxprune", "onnxruntime", "numpy")),
    }
    return PAGE.format(**parts)


def command(options: argparse.Namespace) -> str:
    """What makes this page, without what only says where things are kept."""
    usual = vars(parsed([]))
    words = ["python", "benchmarks/accuracy.py"]
    for name in ("models", "targets", "ways", "seeds", "seeds_beside", "samples"):
        given = getattr(options, name)
        if given != usual[name]:
            words += [f"--{name.replace('_', '-')}", *map(str, given if isinstance(given, list) else [given])]
    return shlex.join([*words, "--write", "docs/accuracy.md"])


def subjects(outcomes: Sequence[Outcome]) -> str:
    """Each model in a line."""
    models = dict.fromkeys(model for model, _ in rows_of(outcomes))
    return "\n".join(f"- `{file_name(model)}`: {SUBJECTS[model].what}" for model in models)


def file_name(model: str) -> str:
    return model_path(model).relative_to(FIXTURES).as_posix()


def summary(outcomes: Sequence[Outcome]) -> str:
    """Which targets are met, which are missed and by how much, and what could not be done."""
    rows = rows_of(outcomes)
    tried = {
        key: (SUBJECTS[key[0]].wanted[key[1]], row["default"])
        for key, row in rows.items()
        if "default" in row and key[1] in SUBJECTS[key[0]].wanted
    }
    missed = [missed_text(*key, *held) for key, held in tried.items() if not met(held[1], held[0])]
    lines = [f"Targets that the default meets: {len(tried) - len(missed)} of {len(tried)}."]
    if missed:
        lines += ["Missed:\n", *(f"- {line}" for line in missed)]
    return "\n".join([*lines, *seconds_lines(rows), *problem_lines(rows)])


def missed_text(model: str, target: int, wanted: float, outcomes: Sequence[Outcome]) -> str:
    lost = problem_of(outcomes) or f"{mean_lost(outcomes):.2f} lost"
    return f"`{model}` at -{target} %: {lost}, at most {wanted:g} wanted"


def seconds_lines(rows: Rows) -> Iterator[str]:
    """How long the run took whose time is limited, if it is here."""
    model, target, wanted = SECONDS_WANTED
    outcomes = rows.get((model, target), {}).get("default", ())
    if outcomes and not problem_of(outcomes):
        taken = f"{mean_seconds(outcomes):.0f} s"
        yield f"\nA whole run of `{model}` at -{target} % takes {taken} (wanted: under {wanted} s)."


def problem_lines(rows: Rows) -> list[str]:
    """Every reason for which there is no figure, once."""
    found: dict[str, None] = {}
    for (model, target), row in rows.items():
        for way, outcomes in row.items():
            for outcome in outcomes:
                if outcome.status != "pruned":
                    reason = " ".join(outcome.reason.split())
                    found[f"- `{model}` at -{target} %, {spoken(way)}: {outcome.status}. {reason}"] = None
    return ["\nWithout a figure:\n", *found] if found else []


PAGE = """\
<!-- Generated: {command} -->

# Accuracy after pruning

Pruned on calibration digits alone: no labels, no gradients, no training afterwards. Made by

    {command}

with {versions}.

## What is lost

Points of accuracy that were lost on 2,000 test digits that pruning never saw (for the U-Net: dB of peak signal-to-noise
ratio on 100 noisy digits), by how many of the MACs were to be removed. Each figure is the mean over random subsets of
{samples} of the 1,000 calibration digits, ± the standard deviation where there are several. Below zero means that the
pruned model is better. One digit is 0.05 points, so differences of a tenth of a point say little.

{table}

{summary}

How to read it:

- *default* is `prune(model, data, macs=...)`, as `onnxprune IN OUT --data DIGITS --macs 50%` does it. The tick or the
  cross says whether its mean is within *to reach*.
- Every other column differs from it in one argument, so the difference between the two is what that part brings.
  *no repair*: no layer is refitted (channels are then ordered by sensitivity). *magnitude*, *activation*,
  *sensitivity*, *obs* and *random*: the criterion that orders channels, still with width curves and repair. *uniform*:
  every group loses the same share. *one round*: channels are scored once; it is the default itself for bounds of 40 %
  of the MACs or more.
- *unreachable*: no plan within the limits has so few MACs; *failed*: the run ended with an error, or with more MACs
  than it was allowed. Reasons are listed below the table.

## MACs left and time

The share of MACs that is left, and the seconds of the whole run: read, score, choose, refit, verify and measure.
Runs at a time: {jobs}, each with one thread, on {cores} cores. One that has the machine for itself is faster.

{costs}

## Models

All are trained; they and their digits are described in `fixtures/README.md`.

{subjects}

## What others reach

Torch-Pruning 1.6.1 works on the PyTorch model and leaves what is lost to fine-tuning. Without that, with all its
criteria and modes tried, *the best one picked by the test digits*, and the statistics of BatchNormalization measured
again where that helps, it loses these points on the same models and digits:

| model | -30 % | -50 % | -70 % |
| --- | --: | --: | --: |
| `mlp` | 0.45 | 4.75 | 14.25 |
| `vgg` | 0.30 | 1.30 | 8.70 |
| `resnet20` | 0.35 | 0.75 | 16.65 |
| `vit` | 3.05 | 45.55 | 73.65 |

Straight after pruning, without new statistics, `resnet20` at -50 % falls from 98.65 to 44.4 %. With AIMET, a ResNet-50
falls from 76.2 to 0.15 % at 43 % of its MACs before it is trained again.

The plainest repair, which is what must be beaten here: channels ordered by activation energy times the weights that
read them, the same share of every group, and each layer behind them refitted once by ridge least squares:

| model | -30 % | -50 % | -70 % | -85 % |
| --- | --: | --: | --: | --: |
| `mlp` | | -0.20 | 2.35 | |
| `vgg` | | 0.15 | 0.40 | 0.95 |
| `resnet20` | | 0.20 | 0.45 | 2.20 |
| `vit` | 2.00 | 6.25 (at -55 %) | 11.40 | |

## Again, or in part

The whole takes hours; an interrupted run goes on where it was if its cells are kept:

    python benchmarks/accuracy.py --results cells.jsonl --write docs/accuracy.md
    python benchmarks/accuracy.py --models mlp resnet20 --targets 50 70 --ways default no-repair --seeds 1

`--seeds-beside 1` measures the other columns on one subset only, `--samples` changes how many digits pruning may see,
and `--jobs` how many runs go on at a time. Remove the file of `--results` when the code has changed.
"""

if __name__ == "__main__":
    main()
