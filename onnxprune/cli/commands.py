"""The commands: each parses, calls and prints, and decides nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import onnxprune
from onnxprune.choosing.plan import load_plan
from onnxprune.cli.group import DEFAULT_COMMAND, DefaultGroup
from onnxprune.cli.looking import compare_command, inspect_command, profile_command, verify_command
from onnxprune.cli.options import (
    batch_option,
    compensate_option,
    data_options,
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
from onnxprune.cli.studies import curves_command, sensitivity_command
from onnxprune.cli.sweeping import bounds_of, files_about_all, files_of, sweep_places, write_sweep
from onnxprune.cli.terminal import progress_bar, stdout_console
from onnxprune.pipeline import DEFAULT_SWEEP, prune, sweep
from onnxprune.pipeline import apply as apply_plan
from onnxprune.reporting.speed import words_on_speed
from onnxprune.reporting.sweeping import point_of, sweep_table


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


for command in (
    inspect_command,
    sensitivity_command,
    curves_command,
    verify_command,
    compare_command,
    profile_command,
):
    main.add_command(command)
