"""What a run leaves behind: files, and what is told on the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from rich.markup import escape

from onnxprune.cli.terminal import stdout_console
from onnxprune.errors import UsageError
from onnxprune.files import Content, check_target, is_same, is_special, write_whole
from onnxprune.job import PruneResult
from onnxprune.reporting import tables
from onnxprune.reporting.speed import words_on_speed
from onnxprune.rewriting.saving import contents_of_model


def check_files(*, read: Sequence[str | None], written: Sequence[str | None]) -> None:
    """Refuse, before any work, files that could not be written, that are read as well, or that are one and the same."""
    named = [Path(name) for name in written if name is not None]
    for path in named:
        for source in read:
            check_target(path, source=Path(source) if source is not None else None)
    for one, other in itertools.combinations(named, 2):
        if is_same(one, other) and not is_special(one):
            raise UsageError(f"Expected different files to write to, found {str(one)!r} twice. Name them apart.")


def write_result(result: PruneResult, target: str, plan: str | None, json_file: str | None) -> tuple[Path, ...]:
    """The model, its data files, plan and report: all of them or none. Returns the data files."""
    contents = contents_of(result, target, plan, json_file)
    write_whole(contents, below=Path(target).parent)
    return tuple(itertools.takewhile(lambda path: path != Path(target), contents))


def contents_of(
    result: PruneResult, target: str, plan: str | None, json_file: str | None, *, own_names: bool = False
) -> dict[Path, Content]:
    """What the files will hold; data files are named after the model with `own_names`, else as the original's."""
    contents = contents_of_model(result.model, Path(target), result.couplings.graph, own_names=own_names)
    if plan is not None:
        contents[Path(plan)] = result.plan.to_json().encode()
    if json_file is not None:
        contents[Path(json_file)] = result.report.to_json().encode()
    return contents


def show_result(result: PruneResult, target: str, data_files: Sequence[Path], quiet: bool) -> None:
    """Notes on stderr, tables on stdout."""
    if quiet:
        return
    show_notes((*result.report.notes, *words_on_speed(result.report)))
    console = stdout_console()
    if result.plan.removed:
        console.print(tables.group_table(result.report.groups))
        console.print()
    console.print(tables.summary_table(result.report))
    if result.report.judgement is not None:
        console.print()
        console.print(tables.judgement_table(result.report.judgement))
    verdict, new = result.report.verdict, len(result.plan.refitted)
    refitted = f", but for {new} weights and biases that were given new numbers" if new else ""
    left_out = " and left out of means and sums" if verdict.is_masked else ""
    beside = f", its weights to {', '.join(map(str, data_files))}" if data_files else ""
    console.print(
        f"\nVerified on {verdict.samples} samples: equals the original with the removed slices set to zero{left_out} "
        f"({verdict.equality}){refitted}. Written to {escape(target + beside)}",
        highlight=False,
        soft_wrap=True,
    )


def show_notes(notes: Iterable[str]) -> None:
    """On stderr, apart from what was asked for."""
    for note in notes:
        click.echo(f"Note: {note}", err=True)
