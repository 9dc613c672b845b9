"""The files of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.choosing.targets import amount
from onnxprune.cli.results import contents_of
from onnxprune.errors import UsageError
from onnxprune.files import Content, write_whole
from onnxprune.job import PruneResult
from onnxprune.pipeline import DEFAULT_SWEEP
from onnxprune.reporting.sweeping import plot, point_of, table_text


@dataclass(frozen=True)
class SweptBound:
    """A bound on "macs" or "latency", as it was given; one on the MACs is told by its amount alone."""

    name: str
    amount: str

    def __str__(self) -> str:
        return self.amount if self.name == "macs" else f"{self.name} {self.amount}"


def bounds_of(macs: str | None, latency: str | None) -> list[SweptBound]:
    """The bounds that were given, or the usual ones, those on the MACs first."""
    given = {"macs": macs, "latency": latency}
    if macs is None and latency is None:
        given["macs"] = ",".join(DEFAULT_SWEEP)
    return [
        SweptBound(name, one.strip()) for name, some in given.items() for one in (some or "").split(",") if one.strip()
    ]


def sweep_places(folder: Path, bounds: Sequence[SweptBound]) -> dict[SweptBound, Path]:
    """
    Where each bound's model goes; the folder is made if it is not there, and goes again if the command leaves it empty.

    Raises:
        UsageError: no bounds, one that means nothing, or two of one name; the folder cannot be made.
    """
    for bound in bounds:
        amount(bound.amount, bound.name)
    names = {bound: f"{bound.name}-{bound.amount.removesuffix('%')}.onnx" for bound in bounds}
    if not bounds or len(set(names.values())) < len(bounds):
        found = ", ".join(map(str, bounds)) or "none"
        raise UsageError(f"Expected bounds on the MACs or the latency, each once, found {found}.")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise UsageError(f"Expected a folder to write to at {str(folder)!r}: {failure.strerror}.") from None
    click.get_current_context().call_on_close(lambda: remove_empty(missing))
    return {bound: folder / name for bound, name in names.items()}


def files_of(place: Path) -> tuple[Path, Path, Path]:
    """Where a model of a sweep goes, its plan and its report."""
    return place, place.with_suffix(".plan.json"), place.with_suffix(".report.json")


def files_about_all(folder: Path) -> tuple[Path, Path]:
    """Where the table goes, and the plot."""
    return folder / "sweep.csv", folder / "sweep.svg"


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, each within the next, as long as nothing is in them."""
    for folder in folders:
        if any(folder.iterdir()):
            return
        folder.rmdir()


def write_sweep(results: Mapping[SweptBound, PruneResult], folder: Path, places: Mapping[SweptBound, Path]) -> None:
    """All models with their plans and reports, the table, and the plot where it can be drawn."""
    contents: dict[Path, Content] = {}
    for bound, result in results.items():
        model, plan, report = files_of(places[bound])
        contents |= contents_of(result, str(model), str(plan), str(report), own_names=True)
    points = [point_of(str(bound), result.report) for bound, result in results.items()]
    table, picture = files_about_all(folder)
    contents[table] = table_text(points).encode()
    drawn = plot(points)
    if drawn is not None:
        contents[picture] = drawn
    write_whole(contents, below=folder)
