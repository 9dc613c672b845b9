"""What people see while they wait and when it is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from onnxprune.probing.asking import ESTIMATE


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


def fail(message: str, code: int) -> None:
    """Print an error and leave."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(code)
