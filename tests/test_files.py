"""Files appear whole, and together, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import pytest

from onnxprune.errors import OnnxPruneError
from onnxprune.files import write_whole


def test_files_appear_together(tmp_path: Path) -> None:
    """What was there before is replaced, and nothing else is left behind."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"old")
    write_whole({one: b"new", other: b"text"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"one": b"new", "other": b"text"}


def test_when_one_cannot_be_written_none_appears(tmp_path: Path) -> None:
    """A second file without a folder keeps the first from appearing; the old one stays."""
    one = tmp_path / "one"
    one.write_bytes(b"old")
    with pytest.raises(OnnxPruneError, match="missing"):
        write_whole({one: b"new", tmp_path / "missing" / "other": b"text"})
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("one", b"old")]


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while the second file is written leaves neither files nor temporary files."""

    def interrupted(file: BinaryIO) -> None:
        file.write(b"sec")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole({tmp_path / "one": b"first", tmp_path / "other": interrupted})
    assert list(tmp_path.iterdir()) == []
