"""Commands that measure and prune nothing: scores and width curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from onnxprune.beginning import read_with
from onnxprune.choosing.eligible import groups_to_prune
from onnxprune.choosing.targets import Limits
from onnxprune.cli.options import (
    data_options,
    effort_of,
    effort_options,
    kept_answers,
    loss_option,
    probe_options,
    selection_options,
)
from onnxprune.cli.results import check_files, show_notes
from onnxprune.cli.terminal import progress_bar, stdout_console
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.files import write_whole
from onnxprune.probing.asking import Effort, Inquiry, Progress, inquiry_for
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.probing.curves import SHARES, curves_of
from onnxprune.probing.probe import sensitivities, step
from onnxprune.probing.proxies import magnitudes
from onnxprune.probing.sensitivities import load_scores
from onnxprune.reporting import tables


@click.command(name="sensitivity", short_help="Measure a score for every channel.")
@click.argument("source", metavar="IN", type=click.Path())
@click.option("--output", "-o", type=click.Path(), required=True, metavar="FILE", help="Where the scores go.")
@loss_option("distance")
@probe_options
@selection_options
@data_options
def sensitivity_command(
    source: str, output: str, data: str | None, loss: Any, delta: float | None, order: int, quiet: bool, **options: Any
) -> None:
    """Measure, by closing gates, how much the loss changes with each channel of IN."""
    check_files(read=(source, data), written=(output,))
    delta = step(delta, order)
    study = studied(source, output, data, **options)
    with progress_bar(quiet) as progress, kept_answers(study.effort.cache):
        channels = sum(group.size for group in study.groups)
        scores, found = sensitivities(study.inquiry(loss, channels, progress), study.groups, delta, order)
    write_whole({Path(output): scores.to_json().encode()})
    if not quiet:
        show_notes(found.notes)
        stdout_console().print(tables.scores_table(scores))
        click.echo(f"\n{scores.loss}, {scores.samples} samples, delta {scores.delta:g}; written to {output}")


@click.command(name="curves", short_help="Measure the loss at several widths of every group.")
@click.argument("source", metavar="IN", type=click.Path())
@click.option("--output", "-o", type=click.Path(), required=True, metavar="FILE", help="Where the curves go.")
@click.option("--scores", type=click.Path(), metavar="FILE", help="Scores that order the channels; default: magnitude.")
@loss_option("distance")
@effort_options
@selection_options
@data_options
def curves_command(
    source: str, output: str, data: str | None, scores: str | None, loss: Any, quiet: bool, **options: Any
) -> None:
    """Measure the loss of IN with each group pruned to each of ten widths, the channels of lowest score gone first."""
    check_files(read=(source, data, scores), written=(output,))
    study = studied(source, output, data, **options)
    ordered = load_scores(scores, study.couplings) if scores else magnitudes(study.couplings, study.groups)
    with progress_bar(quiet) as progress, kept_answers(study.effort.cache):
        points = len(SHARES) * len(study.groups)
        curves, found = curves_of(study.inquiry(loss, points, progress), study.groups, ordered)
    write_whole({Path(output): curves.to_json().encode()})
    if not quiet:
        show_notes(found.notes)
        stdout_console().print(tables.curves_table(curves))
        click.echo(f"\n{curves.loss}, {curves.samples} samples, by {curves.criterion}; written to {output}")


@dataclass(frozen=True)
class Study:
    """What a command measures: groups of a model on samples, and with what effort."""

    couplings: Couplings
    calibration: Calibration
    groups: Sequence[Group]
    effort: Effort

    def inquiry(self, loss: Any, probes: int, progress: Progress | None) -> Inquiry:
        """The inquiry for so many probes of this loss."""
        return inquiry_for(self.couplings, self.calibration, loss, self.effort, progress, probes=probes)


def studied(
    source: str,
    output: str,
    data: str | None,
    *,
    labels: str,
    seed: int,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    inexact: bool,
    **effort_options: Any,
) -> Study:
    """What the options of a command that writes `output` name."""
    effort = effort_of(output, **effort_options)
    couplings, arrays = read_with(source, data)
    groups = groups_to_prune(couplings, Limits(only, skip, inexact=inexact))
    return Study(couplings, gather(couplings.graph, arrays, labels=labels, seed=seed), groups, effort)
