"""The program as the shell runs it: exit codes, pipes, terminals and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundled import data_path, model_path

PROGRAM = [sys.executable, "-c", "from onnxprune.cli import main; main()"]
RESNET = [
    *(str(model_path("resnet_torchscript")), "out.onnx", "--data", str(data_path("resnet_torchscript"))),
    *("--macs", "70%", "--criterion", "sensitivity", "--allocation", "global", "--no-compensate"),
]

CHANNELS_MEASURED = r" [1-9]\d*/\d+"
"""What the bar says in the middle of probing."""


def start(words: list[str], folder: Path, **pipes: int) -> subprocess.Popen[bytes]:
    """The program in a folder, with a terminal that can show bars."""
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    return subprocess.Popen([*PROGRAM, *words], cwd=folder, env=environment, **pipes)


def in_pipes(words: list[str], folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program when nobody watches."""
    process = start(words, folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


class Terminal:
    """The program with stdout and stderr on a pseudo-terminal."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.ours, theirs = pty.openpty()
        self.process = start(words, folder, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.seen = ""

    def until(self, pattern: str) -> None:
        """Read on until the pattern has been seen."""
        for chunk in self._chunks():
            self.seen += chunk
            if re.search(pattern, self.seen):
                return
        raise AssertionError(f"no {pattern} in {self.seen}")

    def finish(self) -> int:
        """Read to the end; the exit code."""
        for chunk in self._chunks():
            self.seen += chunk
        os.close(self.ours)
        return self.process.wait(timeout=60)

    def _chunks(self) -> Iterator[str]:
        try:
            while chunk := os.read(self.ours, 4096):
                yield chunk.decode(errors="replace")
        except OSError:  # the other side is closed
            return


def test_success_is_exit_code_0(tmp_path: Path) -> None:
    """And piped output is plain text: a table, no bar, no colour."""
    code, out, err = in_pipes(
        [str(model_path("mlp_torch")), "out.onnx", "--data", str(data_path("mlp_torch"))], tmp_path
    )
    assert code == 0
    assert "\x1b" not in out + err
    assert "━" not in out + err
    assert err.startswith("Note: On 500 samples, a drop of at most 0.01 at a confidence of 0.95 is shown only if ")
    assert "accuracy on 500 samples that pruning did not use" in out
    assert {path.name for path in tmp_path.iterdir()} == {"out.onnx", ".onnxprune"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["none.onnx", "out.onnx"], 1),
        (["none.onnx"], 2),
        (["none.onnx", "missing/out.onnx"], 2),
        (["--bogus"], 2),
        (["inspect", "none.onnx"], 1),
    ],
)
def test_mistakes_have_their_exit_codes(words: list[str], expected: int, tmp_path: Path) -> None:
    """1 for what failed, 2 for what was badly asked; the message goes to stderr."""
    code, out, err = in_pipes(words, tmp_path)
    assert (code, out) == (expected, "")
    assert "Error: " in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_json_on_stdout_is_json_alone(tmp_path: Path) -> None:
    """Notes never mix with it."""
    model = str(model_path("mlp_torch"))
    code, out, err = in_pipes(["compare", model, model, "--json"], tmp_path)
    assert (code, err) == (0, "")
    assert json.loads(out)["distance"] == 0


def test_a_terminal_shows_a_bar_while_probing(tmp_path: Path) -> None:
    """The bar names the group and counts channels; at the end it is gone and the table is there."""
    terminal = Terminal([*RESNET, "--probe-samples", "16"], tmp_path)
    terminal.until(CHANNELS_MEASURED)
    assert "━" in terminal.seen
    assert terminal.finish() == 0
    assert "Written to out.onnx" in terminal.seen


def test_inspect_and_verify_show_that_they_are_busy(tmp_path: Path) -> None:
    """A large model takes its seconds there, too."""
    model = str(model_path("mlp_torch"))
    code, _, _ = in_pipes([model, "out.onnx", "--plan", "plan.json", "--criterion", "magnitude"], tmp_path)
    assert code == 0
    for words, busy in (
        (["inspect", model], "read and couple"),
        (["verify", model, "out.onnx", "--plan", "plan.json"], "verify"),
    ):
        terminal = Terminal(words, tmp_path)
        assert terminal.finish() == 0
        assert "━" in terminal.seen
        assert busy in terminal.seen


def test_quiet_shows_no_bar(tmp_path: Path) -> None:
    """Not on a terminal either."""
    terminal = Terminal([str(model_path("mlp_torch")), "out.onnx", "--quiet"], tmp_path)
    assert terminal.finish() == 0
    assert terminal.seen == ""


def test_a_request_to_terminate_is_an_interruption(tmp_path: Path) -> None:
    """As Ctrl-C is: one line, exit code 1, and nothing left over."""
    terminal = Terminal([*RESNET, "--precise"], tmp_path)
    terminal.until(CHANNELS_MEASURED)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.finish() == 1
    assert "Error: Interrupted; nothing was written." in terminal.seen
    assert [path.name for path in tmp_path.iterdir()] == [".onnxprune"]


@pytest.mark.parametrize("old", [None, b"an older model"])
def test_ctrl_c_while_probing_leaves_no_file(old: bytes | None, tmp_path: Path) -> None:
    """One line, exit code 1, no temporary file but the journal, and an older OUT as it was."""
    if old is not None:
        (tmp_path / "out.onnx").write_bytes(old)
    terminal = Terminal([*RESNET, "--plan", "plan.json"], tmp_path)
    terminal.until(CHANNELS_MEASURED)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.finish() == 1
    assert "Error: Interrupted; nothing was written." in terminal.seen
    assert "Traceback" not in terminal.seen
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != ".onnxprune"}
    assert left == ({} if old is None else {"out.onnx": old})


def test_ctrl_c_in_a_pipe_leaves_no_file(tmp_path: Path) -> None:
    """Where no bar is shown either; a line says how long it will take."""
    process = start([*RESNET, "--precise"], tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    while not process.stderr.readline().startswith(b"Probing will take about"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert (out, b"Traceback" in err) == (b"", False)
    assert b"Error: Interrupted; nothing was written. What was measured is in" in err
    assert [path.name for path in tmp_path.iterdir()] == [".onnxprune"]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """`onnxprune inspect model.onnx | head -1` ends without a traceback."""
    process = start(
        ["inspect", str(model_path("vit_dynamo")), "--json"], tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    process.wait(timeout=60)
    assert err == ""
