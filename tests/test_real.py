"""Pretrained models that people ship in their packages: each is pruned, validly and exactly, and gets smaller."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.catalog import REAL, Entry, Unavailable
from tests.acceptance import accept

SHORT: dict[str, str] = {}
"""Models that still fall short, with the reason."""


def marked(name: str) -> object:
    return pytest.param(name, marks=[pytest.mark.xfail(reason=SHORT[name], strict=True)] if name in SHORT else [])


@pytest.mark.real
@pytest.mark.parametrize("name", map(marked, REAL))
def test_every_real_model_is_pruned(name: str, tmp_path: Path) -> None:
    """It is valid, equal to the zeroed original at three sizes, and has lost what it should."""
    entry = Entry(name)
    try:
        path = entry.load(tmp_path)
    except Unavailable as failure:
        pytest.skip(str(failure))
    accept(entry, path)
