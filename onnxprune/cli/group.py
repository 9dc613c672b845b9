"""The command group: `prune` where no command is named, and messages in place of tracebacks."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import click

from onnxprune.cli.terminal import fail
from onnxprune.errors import OnnxPruneError

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
