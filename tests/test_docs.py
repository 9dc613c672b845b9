"""Generated pages are up to date."""

from __future__ import annotations

from pathlib import Path

from onnxprune.rules.table import rule_table

DOCS = Path(__file__).parent.parent / "docs"


def test_the_operator_table_is_what_the_registry_says() -> None:
    """docs/operators.md is the output of `python -m onnxprune.rules`."""
    assert (DOCS / "operators.md").read_text(encoding="utf-8") == rule_table()
