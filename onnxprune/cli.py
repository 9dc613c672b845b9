"""The command line: parses and prints, decides nothing."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

import onnxprune
from onnxprune.choosing.choose import groups_to_prune
from onnxprune.choosing.plan import load_plan
from onnxprune.choosing.targets import Limits
from onnxprune.coupling.couple import Couplings, Group, couple
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.files import check_target, is_same, is_special, write_whole
from onnxprune.pipeline import PruneResult, compare, prune
from onnxprune.pipeline import apply as apply_plan
from onnxprune.probing.asking import ESTIMATE
from onnxprune.probing.calibration import Calibration, collected, gather, given_shapes
from onnxprune.probing.curves import width_curves
from onnxprune.probing.means import Means
from onnxprune.probing.probe import PROBE_SAMPLES, probe
from onnxprune.probing.proxies import magnitudes
from onnxprune.probing.sensitivities import load_scores
from onnxprune.reading.observing import CPU
from onnxprune.reading.read import load, read
from onnxprune.reporting import tables
from onnxprune.reporting.inspection import inspect as inspect_couplings
from onnxprune.verifying.verify import verify

DEFAULT_COMMAND = "prune"
NATURAL = click.IntRange(min=0)

Function = TypeVar("Function", bound=Callable[..., Any])


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


def fail(message: str, code: int) -> None:
    """Print an error and leave."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(onnxprune.__version__, prog_name="onnxprune")
def main() -> None:
    """
    Prune an ONNX model: measure what each channel, neuron and head matters, remove the least, prove the result.

    `onnxprune IN OUT` prunes the model IN and writes OUT; the options below belong to it.
    """


def data_options(function: Function) -> Function:
    """Options that say what to measure on."""
    for option in reversed(
        (
            click.option("--data", type=click.Path(), help="Samples: an .npz with an array for each input."),
            click.option("--labels", default="labels", show_default=True, help="Name of the array with the labels."),
            click.option("--seed", type=NATURAL, default=0, show_default=True, help="Seed of everything random."),
            click.option(
                "--threads", type=NATURAL, default=0, help="Threads of ONNX Runtime; 0 leaves the choice to it."
            ),
            click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors."),
        )
    ):
        function = option(function)
    return function


def several(options: Callable[[], Sequence[Callable[[Function], Function]]]) -> Callable[[Function], Function]:
    """Several options at once."""

    def decorate(function: Function) -> Function:
        for option in reversed(options()):
            function = option(function)
        return function

    return decorate


def loss_option(default: str) -> Callable[[Function], Function]:
    """The loss, with the default that suits the command."""
    return click.option(
        "--loss",
        type=click.Choice(["distance", "auto", "cross-entropy", "mse", "kl"]),
        default=default,
        show_default=True,
        help="distance: to the model's own outputs; auto: cross-entropy if integer labels fit, else distance.",
    )


def selection_options(function: Function) -> Function:
    """Options that choose groups."""
    skip = click.option("--skip", multiple=True, metavar="GLOB", help="Leave these groups or layers alone.")
    only = click.option("--only", multiple=True, metavar="GLOB", help="Only these groups or layers; may be repeated.")
    return only(skip(function))


def probe_options() -> tuple[Callable[[Function], Function], ...]:
    """Options of channel probes."""
    return (
        click.option("--delta", type=float, help="How far a gate closes: 1 (the default) removes."),
        click.option("--order", type=click.IntRange(1, 2), default=1, show_default=True, help="2: second derivatives."),
        *effort_options(),
    )


def effort_options() -> tuple[Callable[[Function], Function], ...]:
    """Options that say how much is measured, and with what."""
    return (
        click.option(
            "--probe-samples",
            default=str(PROBE_SAMPLES),
            show_default=True,
            metavar="N|all",
            help="Samples that probes run on: those on which the model hesitates most.",
        ),
        click.option("--precise", is_flag=True, help="Measure on all samples: --probe-samples all."),
        click.option("--jobs", type=click.IntRange(min=1), help="Processes that probe; default: one a core."),
        click.option("--memory", metavar="BYTES", help="What they may take: 4GB. Default: half of the free."),
        click.option("--provider", default=CPU, show_default=True, help="ONNX Runtime's for probes."),
        click.option(
            "--cache", type=click.Path(), metavar="DIR", help="Journal of what is measured. Default: beside OUT."
        ),
        click.option("--no-cache", is_flag=True, help="Neither use nor write a journal."),
    )


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
    type=click.Choice(["sensitivity", "magnitude", "random"]),
    default="sensitivity",
    show_default=True,
    help="What makes a channel matter.",
)
@click.option("--scores", type=click.Path(), metavar="FILE", help="Scores measured by `onnxprune sensitivity`.")
@loss_option("distance")
@several(probe_options)
@selection_options
@click.option("--min-channels", default=1, show_default=True, help="Channels that stay in each group at least.")
@click.option("--multiple-of", default=1, show_default=True, help="Widths are multiples of it.")
@click.option("--plan", type=click.Path(), metavar="FILE", help="Write which channels stay.")
@click.option("--json", "json_file", type=click.Path(), metavar="FILE", help="Write the report.")
@data_options
def prune_command(
    source: str,
    target: str,
    scores: str | None,
    data: str | None,
    probe_samples: str,
    precise: bool,
    cache: str | None,
    no_cache: bool,
    plan: str | None,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Prune the model IN and write OUT."""
    check_files(read=(source, data, scores), written=(target, plan, json_file))
    options |= {"probe_samples": sample_count(probe_samples, precise), "cache": journal_folder(target, cache, no_cache)}
    with progress_bar(quiet) as progress, kept_answers(options["cache"]):
        result = prune(source, data, scores=scores, progress=progress, **options)
    write_result(result, target, plan, json_file)
    show_result(result, target, quiet)


@main.command(name="apply", short_help="Repeat the pruning of a plan.")
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--plan", type=click.Path(), required=True, metavar="FILE", help="A plan written by `onnxprune --plan`.")
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
@several(probe_options)
@selection_options
@data_options
def sensitivity_command(
    source: str,
    output: str,
    loss: Any,
    probe_samples: str,
    precise: bool,
    cache: str | None,
    no_cache: bool,
    delta: float | None,
    order: int,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    data: str | None,
    labels: str,
    seed: int,
    quiet: bool,
    **means: Any,
) -> None:
    """Measure, by closing gates, how much the loss changes with each channel of IN."""
    check_files(read=(source, data), written=(output,))
    count, folder = sample_count(probe_samples, precise), journal_folder(output, cache, no_cache)
    couplings, samples, groups = studied(source, data, labels, seed, only, skip)
    with progress_bar(quiet) as progress, kept_answers(folder):
        scores = probe(
            couplings,
            samples,
            loss,
            groups=groups,
            samples=count,
            delta=delta,
            order=order,
            cache=folder,
            progress=progress,
            **means,
        )
    write_whole({Path(output): scores.to_json().encode()})
    if not quiet:
        stdout_console().print(tables.scores_table(scores))
        click.echo(f"\n{scores.loss}, {scores.samples} samples, delta {scores.delta:g}; written to {output}")


@main.command(name="curves", short_help="Measure the loss at several widths of every group.")
@click.argument("source", metavar="IN", type=click.Path())
@click.option("--output", "-o", type=click.Path(), required=True, metavar="FILE", help="Where the curves go.")
@click.option("--scores", type=click.Path(), metavar="FILE", help="Scores that order the channels; default: magnitude.")
@loss_option("distance")
@several(effort_options)
@selection_options
@data_options
def curves_command(
    source: str,
    output: str,
    scores: str | None,
    loss: Any,
    probe_samples: str,
    precise: bool,
    cache: str | None,
    no_cache: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    data: str | None,
    labels: str,
    seed: int,
    quiet: bool,
    **means: Any,
) -> None:
    """Measure the loss of IN with each group pruned to each of nine widths, the channels of lowest score gone first."""
    check_files(read=(source, data, scores), written=(output,))
    count, folder = sample_count(probe_samples, precise), journal_folder(output, cache, no_cache)
    couplings, samples, groups = studied(source, data, labels, seed, only, skip)
    ordered = load_scores(scores, couplings) if scores else magnitudes(couplings, groups)
    with progress_bar(quiet) as progress, kept_answers(folder):
        curves = width_curves(
            couplings,
            ordered,
            samples,
            loss,
            groups=groups,
            samples=count,
            means=Means(**means),
            cache=folder,
            progress=progress,
        )
    write_whole({Path(output): curves.to_json().encode()})
    if not quiet:
        stdout_console().print(tables.curves_table(curves))
        click.echo(f"\n{curves.loss}, {curves.samples} samples, by {curves.criterion}; written to {output}")


def studied(
    source: str, data: str | None, labels: str, seed: int, only: tuple[str, ...], skip: tuple[str, ...]
) -> tuple[Couplings, Calibration, Sequence[Group]]:
    """The model, its samples, and the groups that were chosen."""
    arrays = collected(data)
    couplings = couple(read(source, input_shapes=given_shapes(arrays)))
    groups = groups_to_prune(couplings, Limits(only, skip))
    return couplings, gather(couplings.graph, arrays, labels=labels, seed=seed), groups


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
        arrays = collected(data)
        couplings = couple(read(original, input_shapes=given_shapes(arrays)))
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


def journal_folder(output: str, cache: str | None, no_cache: bool) -> Path | None:
    """Where answers are kept: beside the output if nothing is said, and nowhere if that is no file."""
    if no_cache and cache is not None:
        raise UsageError("Expected --cache or --no-cache, found both. Leave one out.")
    if no_cache or (cache is None and is_special(Path(output))):
        return None
    return Path(cache) if cache is not None else Path(output).resolve().parent / ".onnxprune"


@contextmanager
def kept_answers(folder: Path | None) -> Iterator[None]:
    """An interruption says that what was measured is kept, if it is."""
    try:
        yield
    except KeyboardInterrupt:
        if folder is None or not folder.is_dir():
            raise
        fail(f"Interrupted; nothing was written. What was measured is in {folder}: the same command goes on there.", 1)


def sample_count(text: str, precise: bool) -> int | None:
    """A number of samples; None for all."""
    if text == "all" or precise:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"Expected for --probe-samples a number of 1 or more, or all; found {text!r}.")
    return int(text)


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
    for note in result.report.notes:
        click.echo(f"Note: {note}", err=True)
    console = stdout_console()
    if result.plan.removed:
        console.print(tables.group_table(result.report.groups))
        console.print()
    console.print(tables.summary_table(result.report))
    verdict = result.report.verdict
    console.print(
        f"\nVerified on {verdict.samples} samples: equals the original with the removed slices set to zero "
        f"({verdict.equality}). Written to {escape(target)}",
        highlight=False,
        soft_wrap=True,
    )


def stdout_console() -> Console:
    """A console on stdout that is wide enough for tables when piped."""
    return Console() if sys.stdout.isatty() else Console(width=160)


@contextmanager
def progress_bar(quiet: bool, what: str = "") -> Iterator[Callable[[str, int, int], None] | None]:
    """
    A bar on stderr, on a terminal only; without a total it just moves.

    Elsewhere there is only a line on how long probing will take, if it takes longer than a moment.
    """
    if quiet:
        yield None
        return
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda what, done, total: announce(what, total)
        return
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"), SpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, speed_estimate_period=10) as bar:
        task = bar.add_task(what, total=None)

        def show(what: str, done: int, total: int) -> None:
            description = f"{escape(what)} {done}/{total}" if total else escape(what)
            bar.update(task, description=description, completed=done, total=total or None)

        yield show


class SpeedColumn(ProgressColumn):
    """Probes a second, once they are known."""

    def render(self, task: Task) -> Text:
        """The text of the column."""
        return Text(f"{task.speed:,.0f}/s" if task.total and task.speed else "")


def announce(what: str, total: int) -> None:
    """Say once, where there is no bar, how long it will take."""
    if what.startswith(ESTIMATE) and not what.endswith(f"{ESTIMATE} 1 s"):
        click.echo(f"{what}: {total:,} probes.".replace(ESTIMATE, ESTIMATE.capitalize()), err=True)
