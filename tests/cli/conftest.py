"""A folder to work in, and the command line as a user meets it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from onnxprune.cli import main
from tests.bundled import digits, model_path

SAMPLES = 64


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `model.onnx`, the dense network, and `data.npz`, some digits with labels; commands run in it."""
    shutil.copy(model_path("mlp_torch"), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **digits("mlp_torch", SAMPLES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line, given in one text or word by word."""

    def command(*words: str | Path) -> Outcome:
        line = [str(word) for word in words] if len(words) > 1 else str(words[0]).split()
        with pytest.raises(SystemExit) as leaving:
            main.main(line, prog_name="onnxprune")
        captured = capsys.readouterr()
        return Outcome(int(leaving.value.code or 0), captured.out, captured.err)

    return command


@pytest.fixture
def done(run: Run) -> Run:
    """Run a command line that must succeed."""

    def command(*words: str | Path) -> Outcome:
        outcome = run(*words)
        assert outcome.code == 0, outcome.err
        return outcome

    return command


@pytest.fixture
def refused(run: Run, place: Path) -> Callable[..., str]:
    """A command line that must be refused: one clear message, no traceback, every file but the journal as it was."""

    def command(*words: str | Path, code: int) -> str:
        before = snapshot(place)
        outcome = run(*words)
        assert outcome.code == code, outcome.err or outcome.out
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert outcome.err.count("Error: ") == 1
        assert snapshot(place) == before
        return outcome.err.split("Error: ")[1].rstrip("\n")

    return command


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file below the folder, hidden ones too, byte for byte."""

    def content(path: Path) -> bytes:
        with path.open("rb") as file:
            return file.read()

    return {
        str(path.relative_to(folder)): content(path) if path.is_file() else None
        for path in folder.rglob("*")
        if ".onnxprune" not in path.parts
    }
