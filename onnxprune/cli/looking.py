"""Commands that show a model, or hold two against each other."""

from __future__ import annotations

import sys
from typing import Any

import click

from onnxprune.beginning import read_with
from onnxprune.choosing.plan import load_plan
from onnxprune.cli.options import (
    data_options,
    loss_option,
    setting_options,
)
from onnxprune.cli.terminal import progress_bar, stdout_console
from onnxprune.comparing import compare, profile
from onnxprune.coupling.couple import couple
from onnxprune.probing.calibration import gather
from onnxprune.reading.read import load, read
from onnxprune.reporting import tables
from onnxprune.reporting.inspection import inspect as inspect_couplings
from onnxprune.verifying.verify import verify


@click.command(name="inspect", short_help="Show what can be pruned, and what is frozen and why.")
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


@click.command(name="verify", short_help="Prove a pruned model against its original.")
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


@click.command(name="compare", short_help="Measure two models side by side.")
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


@click.command(name="profile", short_help="Show where a model's time goes.")
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
