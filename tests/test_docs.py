"""Generated pages are up to date."""

from __future__ import annotations

import re
from pathlib import Path

import onnx

from onnxprune.rules.table import rule_table

DOCS = Path(__file__).parent.parent / "docs"


def test_the_operator_table_is_what_the_registry_says() -> None:
    """docs/operators.md is the output of `python -m onnxprune.rules`; opsets are those of the onnx that it names."""
    page, now = (DOCS / "operators.md").read_text(encoding="utf-8"), rule_table()
    if f"onnx {onnx.__version__} " in page:
        assert page == now
    written, spoken = (dict(re.findall(r"^\| `(\w+)` \|.*?\| (.*) \|$", text, re.MULTILINE)) for text in (page, now))
    assert written
    assert written == {name: said for name, said in spoken.items() if name in written}
