"""The commands: each parses, calls and prints, and decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import onnxprune
from onnxprune.choosing.choose import groups_to_prune
from onnxprune.choosing.plan import load_plan
from onnxprune.choosing.targets import Limits
from onnxprune.cli.group import DEFAULT_COMMAND, DefaultGroup
from onnxprune.cli.options import (
    batch_option,
    compensate_option,
    data_options,
    effort_of,
    effort_options,
    further_options,
    journal_folder,
    judging_options,
    kept_answers,
    loss_option,
    method_options,
    probe_options,
    samples_said,
    selection_options,
    setting_options,
    target_options,
    width_options,
)
from onnxprune.cli.results import check_files, show_notes, show_result, write_result
from onnxprune.cli.sweeping import bounds_of, files_about_all, files_of, sweep_places, write_sweep
from onnxprune.cli.terminal import progress_bar, stdout_console
from onnxprune.coupling.couple import Couplings, Group, couple
from onnxprune.files import write_whole
from onnxprune.job import read_with
from onnxprune.pipeline import DEFAULT_SWEEP, compare, profile, prune, sweep
from onnxprune.pipeline import apply as apply_plan
from onnxprune.probing.asking import Effort, Inquiry, Progress, inquiry_for
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.probing.curves import SHARES, curves_of
from onnxprune.probing.probe import sensitivities, step
from onnxprune.probing.proxies import magnitudes
from onnxprune.probing.sensitivities import load_scores
from onnxprune.reading.read import load, read
from onnxprune.reporting import tables
from onnxprune.reporting.inspection import inspect as inspect_couplings
from onnxprune.reporting.speed import words_on_speed
from onnxprune.reporting.sweeping import point_of, sweep_table
from onnxprune.verifying.verify import verify


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(onnxprune.__version__, prog_name="onnxprune")
def main() -> None:
    """
    Prune an ONNX model: measure what each channel, neuron and head matters, remove the least, prove the result.

    `onnxprune IN OUT` prunes the model IN and writes OUT; the options below belong to it.
    """


@main.command(name=DEFAULT_COMMAND, short_help="Prune a model (the default command).")
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@target_options
@judging_options
@method_options
@further_options
@loss_option("distance")
@probe_options
@selection_options
@width_options
@batch_option
@click.option("--plan", type=click.Path(), metavar="FILE", help="Write which channels stay.")
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the report.")
@data_options
def prune_command(
    source: str,
    target: str,
    scores: str | None,
    data: str | None,
    eval_data: str | None,
    plan: str | None,
    json_file: str | None,
    quiet: bool,
    probe_samples: str,
    precise: bool,
    no_cache: bool,
    cache: str | None,
    **options: Any,
) -> None:
    """Prune the model IN and write OUT."""
    check_files(read=(source, data, eval_data, scores), written=(target, plan, json_file))
    options |= {"probe_samples": samples_said(probe_samples, precise), "cache": journal_folder(target, cache, no_cache)}
    with progress_bar(quiet) as progress, kept_answers(options["cache"]):
        result = prune(source, data, eval_data=eval_data, scores=scores, progress=progress, **options)
    data_files = write_result(result, target, plan, json_file)
    show_result(result, target, data_files, quiet)


@main.command(name="sweep", short_help="One model for each of several bounds on the MACs or the latency.")
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("folder", metavar="DIR", type=click.Path())
@click.option("--macs", default=None, metavar="BOUNDS", help=f"Comma-separated; by default {','.join(DEFAULT_SWEEP)}.")
@click.option("--latency", default=None, metavar="BOUNDS", help="Comma-separated, such as 80%,60% or 3.5ms,2ms.")
@judging_options
@method_options
@further_options
@loss_option("distance")
@probe_options
@selection_options
@width_options
@batch_option
@data_options
def sweep_command(
    source: str,
    folder: str,
    macs: str | None,
    latency: str | None,
    scores: str | None,
    data: str | None,
    eval_data: str | None,
    quiet: bool,
    probe_samples: str,
    precise: bool,
    no_cache: bool,
    cache: str | None,
    **options: Any,
) -> None:
    """
    Prune IN to each bound, measuring once, and write the models with their plans and reports to DIR.

    DIR gets `macs-50.onnx`, `macs-50.plan.json` and `macs-50.report.json` for 50% of the MACs, `latency-50.onnx` and so
    on for the latency, a table `sweep.csv`, and a plot `sweep.svg` if matplotlib is there (pip install
    "onnxprune[plot]").
    """
    bounds = bounds_of(macs, latency)
    places = sweep_places(Path(folder), bounds)
    written = [*(file for place in places.values() for file in files_of(place)), *files_about_all(Path(folder))]
    check_files(read=(source, data, eval_data, scores), written=[str(file) for file in written])
    options |= {
        "probe_samples": samples_said(probe_samples, precise),
        "cache": journal_folder(str(places[bounds[0]]), cache, no_cache),
    }
    with progress_bar(quiet) as progress, kept_answers(options["cache"]):
        results = sweep(
            source,
            data,
            macs=[bound.amount for bound in bounds if bound.name == "macs"],
            latency=[bound.amount for bound in bounds if bound.name == "latency"],
            eval_data=eval_data,
            scores=scores,
            progress=progress,
            **options,
        )
    write_sweep(dict(zip(bounds, results, strict=True)), Path(folder), places)
    if not quiet:
        show_notes(dict.fromkeys(note for result in results for note in result.report.notes))
        for bound, result in zip(bounds, results, strict=True):
            show_notes(f"{bound}: {words}" for words in words_on_speed(result.report))
        points = [point_of(str(bound), result.report) for bound, result in zip(bounds, results, strict=True)]
        stdout_console().print(sweep_table(points))
        click.echo(f"\nEach model passed its own check. Written to {folder}")


@main.command(name="apply", short_help="Repeat the pruning of a plan.")
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--plan", type=click.Path(), required=True, metavar="FILE", help="A plan written by `onnxprune --plan`.")
@compensate_option
@setting_options
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the report.")
@data_options
def apply_command(
    source: str, target: str, plan: str, json_file: str | None, quiet: bool, data: str | None, **options: Any
) -> None:
    """Prune IN as the plan says, bit for bit, check it, and write OUT."""
    check_files(read=(source, data, plan), written=(target, json_file))
    with progress_bar(quiet) as progress:
        result = apply_plan(source, load_plan(plan), data, progress=progress, **options)
    data_files = write_result(result, target, None, json_file)
    show_result(result, target, data_files, quiet)


@main.command(name="inspect", short_help="Show what can be pruned, and what is frozen and why.")
@click.argument("source", metavar="IN", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def inspect_command(source: str, as_json: bool) -> None:
    """Show the groups of channels in IN, and everything that is frozen, with node and reason."""
    with progress_bar(quiet=False, what="read and couple"):
        found = inspect_couplings(couple(read(source)))
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    console = stdout_console()
    console.print(
        f"{len(found.groups)} groups in {found.nodes} nodes; {found.macs:,.0f} MACs a sample, "
        f"{found.params:,.0f} parameters, {found.bytes:,} bytes\n",
        highlight=False,
    )
    console.print(tables.inspection_table(found))
    if found.frozen:
        console.print()
        console.print(tables.frozen_table(found))


@main.command(name="sensitivity", short_help="Measure a score for every channel.")
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


@main.command(name="curves", short_help="Measure the loss at several widths of every group.")
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


@main.command(name="verify", short_help="Prove a pruned model against its original.")
@click.argument("original", type=click.Path())
@click.argument("pruned", type=click.Path())
@click.option("--plan", type=click.Path(), required=True, metavar="FILE", help="The plan the model was pruned by.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@data_options
def verify_command(
    original: str,
    pruned: str,
    plan: str,
    as_json: bool,
    data: str | None,
    labels: str,
    seed: int,
    threads: int,
    quiet: bool,
) -> None:
    """Check that PRUNED is valid, keeps the interface, and equals ORIGINAL with the removed slices set to zero."""
    with progress_bar(quiet, "verify"):
        couplings, arrays = read_with(original, data)
        samples = gather(couplings.graph, arrays, labels=labels, seed=seed)
        verdict = verify(couplings, load_plan(plan), load(pruned).model, samples)
    if as_json:
        click.echo(verdict.to_json(), nl=False)
    elif not quiet:
        stdout_console().print(tables.verdict_table(verdict))
    sys.exit(0 if verdict.passed else 1)


@main.command(name="compare", short_help="Measure two models side by side.")
@click.argument("original", type=click.Path())
@click.argument("pruned", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--layers", is_flag=True, help="Layer by layer, too.")
@loss_option("auto")
@setting_options
@data_options
def compare_command(original: str, pruned: str, as_json: bool, quiet: bool, data: str | None, **options: Any) -> None:
    """Loss, accuracy, distance of the outputs, MACs, parameters, bytes and latency of both models."""
    with progress_bar(quiet) as progress:
        found = compare(original, pruned, data, progress=progress, **options)
    if as_json:
        click.echo(found.to_json(), nl=False)
    elif not quiet:
        stdout_console().print(tables.comparison_table(found))
        if found.layers is not None:
            click.echo()
            stdout_console().print(tables.profiles_table(*found.layers))


@main.command(name="profile", short_help="Show where a model's time goes.")
@click.argument("source", metavar="IN", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@setting_options
@data_options
def profile_command(source: str, as_json: bool, quiet: bool, data: str | None, **options: Any) -> None:
    """Each layer of IN: what it runs as, its time, MACs and GFLOP/s, and where its widths are on the stairs."""
    with progress_bar(quiet) as progress:
        found = profile(source, data, progress=progress, **options)
    if as_json:
        click.echo(found.to_json(), nl=False)
    elif not quiet:
        click.echo(f"{found.setting}\n")
        stdout_console().print(tables.profile_table(found))
