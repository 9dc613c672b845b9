"""The command line."""

from onnxprune.cli.commands import main

__all__ = ["main"]
