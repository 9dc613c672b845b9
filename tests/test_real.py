"""Pretrained models that people ship in their packages: each is pruned, validly and exactly, and gets smaller."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixtures.catalog import REAL, Entry, Unavailable
from tests.acceptance import accept

SHORT = {
    "basic_pitch": "34 % and not 40 %: its filters make frequencies, which are space later, and of the few layers with "
    "channels most have them on one side only",
}
"""Models that still fall short, with the reason."""


def marked(name: str) -> object:
    """The model, expected to fail where it falls short."""
    short = [pytest.mark.xfail(raises=AssertionError, reason=SHORT[name], strict=True)] if name in SHORT else []
    return pytest.param(name, marks=short)


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
