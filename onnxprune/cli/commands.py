"""The commands: each parses, calls and prints, and decides nothing."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.markup import escape

import onnxprune
from onnxprune.choosing.choose import groups_to_prune
from onnxprune.choosing.plan import load_plan
from onnxprune.choosing.targets import Limits
from onnxprune.cli.options import (
    compensate_option,
    data_options,
    effort_of,
    effort_options,
    journal_folder,
    kept_answers,
    loss_option,
    probe_options,
    samples_said,
    selection_options,
)
from onnxprune.cli.terminal import fail, progress_bar, stdout_console
from onnxprune.coupling.couple import Couplings, Group, couple
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.files import check_target, is_same, is_special, write_whole
from onnxprune.pipeline import PruneResult, compare, prune, read_with
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
from onnxprune.verifying.verify import verify

DEFAULT_COMMAND = "prune"


class DefaultGroup(click.Group):
    """A group that runs `prune` when its first word is no command, and whose help shows that command's options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command in front where none is named."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help", "--version"):
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args or ["--help"])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The default command's usage first."""
        formatter.write_usage(ctx.command_path, "IN OUT [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="   or: ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The default command's options, then the commands."""
        self.commands[DEFAULT_COMMAND].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run; a user's mistake is one message and an exit code, never a traceback."""
        kwargs["standalone_mode"] = False
        interrupt_on_termination()
        try:
            sys.exit(super().main(*args, **kwargs) or 0)
        except click.exceptions.Exit as leaving:
            sys.exit(leaving.exit_code)
        except click.ClickException as failure:
            failure.show()
            sys.exit(failure.exit_code)
        except (click.Abort, KeyboardInterrupt):
            fail("Interrupted; nothing was written.", 1)
        except OnnxPruneError as failure:
            fail(str(failure), failure.exit_code)
        except BrokenPipeError:
            sys.exit(1)


def interrupt_on_termination() -> None:
    """Let a request to terminate, or a terminal that is gone, end the program as Ctrl-C does: nothing is left over."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), interrupt)


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
@click.option("--macs", metavar="BOUND", help="At most these multiply-accumulates: 50%, 3M. Without any target: 70%.")
@click.option("--params", metavar="BOUND", help="At most these parameters: 50%, 200K.")
@click.option("--size", metavar="BOUND", help="At most this file size: 50%, 5MB.")
@click.option("--ratio", type=float, metavar="SHARE", help="Share of channels to remove in every group: 0.3.")
@click.option("--threshold", metavar="θ", help="Remove channels whose score is below median, mean or a number.")
@click.option(
    "--criterion",
    type=click.Choice(["sensitivity", "obs", "magnitude", "random"]),
    default="sensitivity",
    show_default=True,
    help="What makes a channel matter.",
)
@click.option("--scores", type=click.Path(), metavar="FILE", help="Scores measured by `onnxprune sensitivity`.")
@loss_option("distance")
@probe_options
@selection_options
@click.option("--min-channels", default=1, show_default=True, help="Channels that stay in each group at least.")
@click.option("--multiple-of", default=1, show_default=True, help="Widths are multiples of it.")
@compensate_option
@click.option("--plan", type=click.Path(), metavar="FILE", help="Write which channels stay.")
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the report.")
@data_options
def prune_command(
    source: str,
    target: str,
    scores: str | None,
    data: str | None,
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
    check_files(read=(source, data, scores), written=(target, plan, json_file))
    samples, folder = samples_said(probe_samples, precise), journal_folder(target, cache, no_cache)
    with progress_bar(quiet) as progress, kept_answers(folder):
        result = prune(source, data, scores=scores, progress=progress, probe_samples=samples, cache=folder, **options)
    write_result(result, target, plan, json_file)
    show_result(result, target, quiet)


@main.command(name="apply", short_help="Repeat the pruning of a plan.")
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--plan", type=click.Path(), required=True, metavar="FILE", help="A plan written by `onnxprune --plan`.")
@compensate_option
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the report.")
@data_options
def apply_command(
    source: str, target: str, plan: str, json_file: str | None, quiet: bool, data: str | None, **options: Any
) -> None:
    """Prune IN as the plan says, bit for bit, check it, and write OUT."""
    check_files(read=(source, data, plan), written=(target, json_file))
    with progress_bar(quiet) as progress:
        result = apply_plan(source, load_plan(plan), data, progress=progress, **options)
    write_result(result, target, None, json_file)
    show_result(result, target, quiet)


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
    **effort_options: Any,
) -> Study:
    """What the options of a command that writes `output` name."""
    effort = effort_of(output, **effort_options)
    couplings, arrays = read_with(source, data)
    groups = groups_to_prune(couplings, Limits(only, skip))
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
@loss_option("auto")
@data_options
def compare_command(original: str, pruned: str, as_json: bool, quiet: bool, data: str | None, **options: Any) -> None:
    """Loss, accuracy, distance of the outputs, MACs, parameters, bytes and latency of both models."""
    with progress_bar(quiet) as progress:
        found = compare(original, pruned, data, progress=progress, **options)
    if as_json:
        click.echo(found.to_json(), nl=False)
    elif not quiet:
        stdout_console().print(tables.comparison_table(found))


def check_files(*, read: Sequence[str | None], written: Sequence[str | None]) -> None:
    """Refuse, before any work, files that could not be written, that are read as well, or that are one and the same."""
    named = [Path(name) for name in written if name is not None]
    for path in named:
        for source in read:
            check_target(path, source=Path(source) if source is not None else None)
    for one, other in itertools.combinations(named, 2):
        if is_same(one, other) and not is_special(one):
            raise UsageError(f"Expected different files to write to, found {str(one)!r} twice. Name them apart.")


def write_result(result: PruneResult, target: str, plan: str | None, json_file: str | None) -> None:
    """The model, its plan and its report: all of them or none."""
    contents = {Path(target): result.model.SerializeToString()}
    if plan is not None:
        contents[Path(plan)] = result.plan.to_json().encode()
    if json_file is not None:
        contents[Path(json_file)] = result.report.to_json().encode()
    write_whole(contents)


def show_result(result: PruneResult, target: str, quiet: bool) -> None:
    """Notes on stderr, tables on stdout."""
    if quiet:
        return
    show_notes(result.report.notes)
    console = stdout_console()
    if result.plan.removed:
        console.print(tables.group_table(result.report.groups))
        console.print()
    console.print(tables.summary_table(result.report))
    verdict, layers = result.report.verdict, result.report.refitted
    new = sum(layer.penalty is not None for layer in layers)
    refitted = f", but for the weights of {new} layers that were refitted" if new else ""
    console.print(
        f"\nVerified on {verdict.samples} samples: equals the original with the removed slices set to zero "
        f"({verdict.equality}){refitted}. Written to {escape(target)}",
        highlight=False,
        soft_wrap=True,
    )


def show_notes(notes: Iterable[str]) -> None:
    """On stderr, apart from what was asked for."""
    for note in notes:
        click.echo(f"Note: {note}", err=True)
