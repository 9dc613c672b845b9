"""Every example in the README runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from onnxprune.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and data under the names that the README uses."""
    shutil.copy(ROOT / "fixtures/mlp_torch.onnx", tmp_path / "model.onnx")
    shutil.copy(ROOT / "fixtures/digits/calibration.npz", tmp_path / "calibration.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", blocks("sh"))
def test_command_lines_run(block: str, workplace: Path) -> None:
    """The shell lines run one after another and leave their files."""
    for line in block.splitlines():
        words = shlex.split(line)
        assert words[0] == "onnxprune"
        outcome = CliRunner().invoke(main, words[1:])
        assert outcome.exit_code == 0, f"{line}\n{outcome.output}"
    assert (workplace / "pruned.onnx").read_bytes() == (workplace / "again.onnx").read_bytes()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_run(block: str, workplace: Path) -> None:
    """The Python examples run as they stand."""
    exec(compile(block, "README.md", "exec"), {})


def test_the_hand_written_demo_is_what_make_runs() -> None:
    """The lines for machines without make are those of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin").replace("@", "")
    console = blocks("console")[1]
    for line in console.splitlines():
        if line.startswith((".venv/bin/onnxprune", ".venv/bin/python -m pytest")):
            assert line in makefile
