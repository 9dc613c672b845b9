"""Answers outlive the process that measured them, and are never mistaken for others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.probing import asking
from onnxprune.probing.asking import Effort, Inquiry
from onnxprune.probing.calibration import gather
from onnxprune.probing.engine.engine import Answer, Engine, Question
from onnxprune.probing.journal import Entry, Journal, journal_key, line_of, open_journal
from onnxprune.probing.losses import LossName, prepare_loss
from onnxprune.probing.probe import channel_questions, probe
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.reading.read import read
from tests.choosing.graphs import three_layers
from tests.probing.losses import furthest

KEY, OTHER_KEY = "0123456789abcdef" * 4, "0123456789abcdef" * 3 + "f" * 16
NAME = "0123456789abcdef.jsonl"
ABOUT = {"model": "9a31", "loss": "kl", "samples": 32}
WRITTEN = (
    Entry("conv1", "channel 0, order 1, delta 1.0", 0.1, 1e-300),
    Entry("größe", "channel 10, order 1, delta 1.0", -0.0, float("inf")),
    Entry('a\nb\r"c"', "channel 0, order 2, delta 0.5", float("nan"), 5e-324),
    Entry("", "", 1e22, 0.0),
)


def begun(folder: Path, entries: tuple[Entry, ...] = WRITTEN) -> Path:
    """The file of a journal with these entries."""
    journal = open_journal(folder, KEY, ABOUT)
    for entry in entries:
        journal.append(entry)
    return journal.path


def said(journal: Journal) -> set[str]:
    """What the journal holds, spelled out: two texts are the same only if all floats are, to the last bit."""
    return {repr(entry) for entry in journal.entries.values()}


def reopened(path: Path, content: bytes) -> Journal:
    """The journal that is made of this content: whole again, and free of anything that was never written."""
    path.write_bytes(content)
    journal = open_journal(path.parent, KEY, ABOUT)
    assert path.read_bytes() == journal.header + b"".join(line_of(entry) for entry in journal.entries.values())
    assert said(journal) <= {repr(entry) for entry in WRITTEN}
    return journal


@pytest.fixture(scope="module")
def example_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A journal's file to be damaged, and what it held."""
    path = begun(tmp_path_factory.mktemp("journal"))
    return path, path.read_bytes()


@given(st.lists(st.builds(Entry, st.text(), st.text(), st.floats(), st.floats()), max_size=5))
def test_answers_come_back_to_the_last_bit(example_file: tuple[Path, bytes], entries: list[Entry]) -> None:
    """Whatever the names and numbers, what is read is what was written, and the last word on each question."""
    path, _ = example_file
    path.unlink(missing_ok=True)
    begun(path.parent, tuple(entries))
    journal = open_journal(path.parent, KEY, ABOUT)
    last = {(entry.group, entry.question): entry for entry in entries}
    assert said(journal) == {repr(entry) for entry in last.values()}
    assert journal.dropped == 0


def test_a_journal_cut_anywhere_keeps_the_lines_before_the_cut(example_file: tuple[Path, bytes]) -> None:
    """At every byte: whole lines stay, the torn one goes, and the next answer gets a line of its own."""
    path, content = example_file
    for end in range(len(content) + 1):
        whole_lines = content[:end].count(b"\n")
        journal = reopened(path, content[:end])
        assert said(journal) == {repr(entry) for entry in WRITTEN[: max(0, whole_lines - 1)]}
        assert journal.dropped == (content[:end] != b"" and not content[:end].endswith(b"\n"))
        journal.append(WRITTEN[-1])
        assert path.read_bytes().endswith(b"\n" + line_of(WRITTEN[-1]))


@given(st.data())
def test_a_changed_byte_costs_its_line_and_no_other(example_file: tuple[Path, bytes], data: st.DataObject) -> None:
    """All but the one it is in are still there, and the next if it was the newline; a changed header costs all."""
    path, content = example_file
    place = data.draw(st.integers(0, len(content) - 1))
    changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    journal = reopened(path, content[:place] + bytes([changed]) + content[place + 1 :])
    line = content[:place].count(b"\n")
    others = [*WRITTEN[: line - 1], *WRITTEN[line + (content[place] == ord("\n")) :]] if line else []
    assert said(journal) >= {repr(entry) for entry in others}
    assert len(journal.entries) < len(WRITTEN)
    assert journal.dropped > 0


@given(st.data(), st.binary(min_size=1, max_size=8))
def test_garbage_costs_the_lines_it_touches(
    example_file: tuple[Path, bytes], data: st.DataObject, garbage: bytes
) -> None:
    """Bytes in the place of others: all lines that they did not touch are still there."""
    path, content = example_file
    start = data.draw(st.integers(len(content.splitlines()[0]) + 1, len(content)))
    end = data.draw(st.integers(start, len(content)))
    journal = reopened(path, content[:start] + garbage + content[end:])
    before = content[:start].count(b"\n") - 1
    after = content[end:].count(b"\n") - 1
    untouched = [*WRITTEN[:before], *(WRITTEN[-after:] if after > 0 else ())]
    assert said(journal) >= {repr(entry) for entry in untouched}


FIRST = line_of(WRITTEN[0])
UNTRUSTED = {
    "no text": b"\xff\xfe\n",
    "empty": b"\n",
    "another object": b"{}\n",
    "deep": b"[" * 100_000 + b"\n",
    "long": b"1" * 10_000 + b"\n",
    "torn, then whole again": FIRST[:-40] + FIRST,
    "another number": FIRST.replace(b"0.1", b"0.2"),
    "another spelling": FIRST.replace(b"0.1", b"0.10"),
    "not a JSON number": FIRST.replace(b"0.1", b"NaN"),
    "too large a number": FIRST.replace(b"0.1", b"1" + b"0" * 400),
    "a field too few": FIRST.replace(b'"mean": 0.1, ', b""),
    "a field too many": FIRST.replace(b'{"group"', b'{"more": 1, "group"'),
    "no checksum": FIRST[: FIRST.index(b', "crc32"')] + b"}\n",
    "a space": FIRST.replace(b"}", b" }"),
    "a carriage return": FIRST.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("line", UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_line_that_would_not_be_written_so_is_dropped(line: bytes, example_file: tuple[Path, bytes]) -> None:
    """It is counted, and the lines around it stay."""
    path, content = example_file
    journal = reopened(path, content.replace(FIRST, line))
    assert said(journal) == {repr(entry) for entry in WRITTEN[1:]}
    assert journal.dropped == 1


def test_a_later_line_wins(tmp_path: Path) -> None:
    """An answer that was measured twice counts as it came last."""
    again = replace(WRITTEN[0], mean=0.2)
    path = begun(tmp_path, (WRITTEN[0], again, WRITTEN[0], again))
    assert said(open_journal(path.parent, KEY, ABOUT)) == {repr(again)}


def test_another_key_shares_nothing(tmp_path: Path) -> None:
    """Even where the names of the files are the same."""
    begun(tmp_path)
    journal = open_journal(tmp_path, OTHER_KEY, ABOUT)
    assert (journal.entries, journal.dropped) == ({}, 1 + len(WRITTEN))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    assert journal.path.read_bytes() == journal.header


def test_runs_that_share_a_journal_do_not_mix_lines(tmp_path: Path) -> None:
    """Two of them, writing at the same time."""
    journals = [open_journal(tmp_path, KEY, ABOUT) for _ in range(2)]
    entries = [Entry(f"group {number}", "x" * number, number / 7, 0.0) for number in range(200)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: journals[number % 2].append(entries[number]), range(200)))
    journal = open_journal(tmp_path, KEY, ABOUT)
    assert said(journal) == {repr(entry) for entry in entries}
    assert journal.dropped == 0


def test_a_run_goes_on_writing_when_its_journal_is_mended_or_removed(tmp_path: Path) -> None:
    """What it writes afterwards is in the file that is there then."""
    journal = open_journal(tmp_path, KEY, ABOUT)
    journal.path.write_bytes(journal.header + b"torn")
    open_journal(tmp_path, KEY, ABOUT)
    journal.append(WRITTEN[0])
    assert said(open_journal(tmp_path, KEY, ABOUT)) == {repr(WRITTEN[0])}
    journal.path.unlink()
    journal.append(WRITTEN[1])
    assert said(open_journal(tmp_path, KEY, ABOUT)) == {repr(WRITTEN[1])}


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """At once, with the system's reason: a file in its place, or a folder in the place of the journal."""
    (tmp_path / "file").touch()
    (tmp_path / NAME).mkdir()
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path, "there is something else than a file")):
        with pytest.raises(UsageError) as refusal:
            open_journal(folder, KEY, ABOUT)
        assert str(refusal.value) == (
            f"Expected a folder for the journal of probes at '{folder}', found that '{folder / NAME}' cannot be read "
            f"and written: {reason}. Name another folder."
        )


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("none")])
def test_what_is_no_file_is_no_journal(make: Callable[[Path], None], tmp_path: Path) -> None:
    """A pipe would wait for ever, and a link may lead anywhere."""
    make(tmp_path / NAME)
    with pytest.raises(UsageError, match="there is something else than a file"):
        open_journal(tmp_path, KEY, ABOUT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_ends_the_run_with_a_message(tmp_path: Path) -> None:
    """It says what is lost and how to go on."""
    journal = replace(open_journal(tmp_path, KEY, ABOUT), path=Path("/dev/full"))
    with pytest.raises(OnnxPruneError) as refusal:
        journal.append(WRITTEN[0])
    assert str(refusal.value) == (
        "Expected to add an answer to the journal '/dev/full': No space left on device. Mend that and run again: "
        "the answers before this one are kept."
    )


LABELS = np.arange(8) % 3
DATA = {"x": np.random.default_rng(0).standard_normal((8, 3, 4, 4)).astype(np.float32), "labels": LABELS}
CHANNELS = 25


class Told:
    """Listens to progress: what was done each time; interrupts the run at one of them."""

    def __init__(self, stop: int | None = None) -> None:
        self.done: list[int] = []
        self._stop = stop

    def __call__(self, what: str, done: int, total: int) -> None:
        self.done.append(done)
        if done == self._stop:
            raise KeyboardInterrupt


def probed(
    cache: Path | None, told: Told | None = None, *, couplings: Couplings | None = None, **settings: Any
) -> Sensitivities:
    """Scores of the residual network's channels."""
    return probe(couplings or three_layers(), **{"data": DATA, "cache": cache, "progress": told, **settings})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each engine was asked."""
    numbers: list[int] = []
    answers = Engine.answers

    def counted(engine: Engine, questions: Sequence[Question]) -> Iterator[Answer]:
        numbers.append(len(questions))
        return answers(engine, questions)

    monkeypatch.setattr(Engine, "answers", counted)
    return numbers


def test_an_interrupted_run_goes_on_where_it_stopped(asked: list[int], tmp_path: Path) -> None:
    """Only the rest is asked, progress begins with what is there, and the scores are those of one run."""
    with pytest.raises(KeyboardInterrupt):
        probed(tmp_path, Told(stop=10))
    told = Told()
    scores = probed(tmp_path, told)
    assert asked == [CHANNELS, CHANNELS - 10]
    assert told.done == list(range(10, CHANNELS + 1))
    assert scores == probed(None)


def test_answers_from_other_threads_are_kept_too(asked: list[int], tmp_path: Path) -> None:
    """With an executor they come in any order."""
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(KeyboardInterrupt):
            probed(tmp_path, Told(stop=20), executor=executor)
        scores = probed(tmp_path, executor=executor)
    assert asked == [CHANNELS, CHANNELS - 20]
    assert scores == probed(None)


SCRIPT = """
import os, signal, sys
import onnxprune

def progress(what, done, total):
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)

model, data, cache = sys.argv[1:]
onnxprune.probe(onnxprune.couple(onnxprune.read(model)), data, cache=cache, progress=progress)
"""


def test_a_killed_process_leaves_what_it_measured(asked: list[int], tmp_path: Path) -> None:
    """The next one goes on from there."""
    model, data, cache = tmp_path / "model.onnx", tmp_path / "data.npz", tmp_path / "cache"
    onnx.save(three_layers().graph.model, model)
    np.savez(data, x=DATA["x"])
    killed = subprocess.run([sys.executable, "-c", SCRIPT, model, data, cache], check=False)
    scores = probed(cache, couplings=couple(read(model)))
    assert killed.returncode == -signal.SIGKILL
    assert asked == [CHANNELS - 10]
    assert scores == probed(None)


def test_where_all_is_known_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine is made for a second run of the same."""
    first = probed(tmp_path)
    monkeypatch.setattr(asking, "Engine", pytest.fail)
    assert probed(tmp_path) == first


def other_weights() -> Couplings:
    """The same network with one weight changed by its last bit."""
    model = ModelProto.FromString(three_layers().graph.model.SerializeToString())
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head_w")
    numbers = numpy_helper.to_array(weight).copy()
    numbers.flat[0] = np.nextafter(numbers.flat[0], np.float32(1))
    weight.CopyFrom(numpy_helper.from_array(numbers, "head_w"))
    return couple(read(model))


def doubled(sample: int) -> dict[str, np.ndarray]:
    """The data with one sample changed."""
    return DATA | {"x": DATA["x"] * np.where(np.arange(8) == sample, 2, 1).astype(np.float32).reshape(8, 1, 1, 1)}


CROSS_ENTROPY = {"loss": "cross-entropy"}
EVEN = {"loss": "mse", "samples": 4}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "another model": ({}, {"couplings": other_weights()}),
    "another sample": ({}, {"data": doubled(3)}),
    "more samples": ({"samples": 4}, {"samples": 5}),
    "another order": ({"samples": 8}, {"data": {"x": DATA["x"][::-1]}, "samples": 8}),
    "another loss": ({}, {"loss": "mse"}),
    "with labels": ({}, CROSS_ENTROPY),
    "other labels": (CROSS_ENTROPY, {**CROSS_ENTROPY, "data": DATA | {"labels": (LABELS + 1) % 3}}),
    "another mean square": (EVEN, {**EVEN, "data": doubled(3)}),  # of samples that are not probed themselves
    "another delta": (CROSS_ENTROPY, {**CROSS_ENTROPY, "delta": 0.5}),
    "another derivative": ({"delta": 0.5, "order": 2}, {"delta": 0.25, "order": 2}),
    "one of these": ({"groups": three_layers().groups[:1]}, {}),
    "the same": (CROSS_ENTROPY, CROSS_ENTROPY),
}


@pytest.mark.parametrize(("before", "now"), PAIRS.values(), ids=PAIRS)
def test_scores_do_not_depend_on_what_was_measured_before(
    before: dict[str, Any], now: dict[str, Any], tmp_path: Path
) -> None:
    """With a journal of whatever run they are, bit for bit, those without one."""
    probed(tmp_path, **before)
    assert probed(tmp_path, **now) == probed(None, **now)


@pytest.mark.parametrize(
    ("now", "more"),
    [
        ({}, []),
        ({"groups": three_layers().groups[1:]}, []),
        ({"jobs": 1, "memory": "1GB", "threads": 2}, []),
        ({"data": DATA | {"labels": LABELS + 1}}, []),
        ({"data": DATA | {"x": DATA["x"][::-1][::-1]}}, []),
        ({"delta": 0.5, "order": 2}, [CHANNELS]),
        ({"data": doubled(3)}, [CHANNELS]),
    ],
    ids=["all", "some", "means", "labels unused", "a view", "delta", "samples"],
)
def test_only_what_makes_another_answer_is_asked_again(
    now: dict[str, Any], more: list[int], asked: list[int], tmp_path: Path
) -> None:
    """Not what other processes, other memory or data in another form make."""
    probed(tmp_path)
    probed(tmp_path, **now)
    assert asked == [CHANNELS, *more]


def key(loss: LossName = "kl", targets: float = 1, **changes: Any) -> str:
    """The key for the residual network, with targets times a number and other changes of its couplings."""
    couplings = replace(three_layers(), **changes)
    calibration = gather(couplings.graph, DATA)
    prepared = prepare_loss(couplings.graph, calibration, loss)
    scaled = {name: values * targets for name, values in prepared.targets.items()}
    return journal_key(couplings, calibration, replace(prepared, targets=scaled))


def test_another_model_or_other_groups_have_another_key() -> None:
    """A group's name and channel may be something else there, even if all outputs are the same."""
    first, *others = three_layers().groups
    model = replace(three_layers().graph, digest=lambda: "0" * 64)
    assert len({key(), key(graph=model), key(groups=(replace(first, slices=()), *others))}) == 3


@pytest.mark.parametrize("loss", ["kl", "mse", "cross-entropy"])
def test_targets_of_another_model_have_another_key(loss: LossName) -> None:
    """A distance may be one to what a teacher says; only the rounding of its numbers does not matter."""
    assert key(loss) != key(loss, targets=1.001)
    assert loss == "cross-entropy" or key(loss) == key(loss, targets=1 + 1e-9)


def test_the_order_in_which_arrays_are_given_does_not_matter() -> None:
    """Inputs have names."""
    couplings = three_layers()
    calibration = replace(gather(couplings.graph, DATA), arrays=DATA)
    turned = replace(calibration, arrays=dict(reversed(DATA.items())))
    loss = prepare_loss(couplings.graph, gather(couplings.graph, DATA))
    assert journal_key(couplings, calibration, loss) == journal_key(couplings, turned, loss)


def test_a_loss_of_ones_own_has_no_journal(tmp_path: Path) -> None:
    """Nothing tells one function from another."""
    assert probed(tmp_path / "cache", loss=furthest) == probed(None, loss=furthest)
    assert not (tmp_path / "cache").exists()


def test_it_is_told_what_was_there(tmp_path: Path) -> None:
    """How many answers were, in which file, and how many lines of it were of no use."""
    couplings = three_layers()
    calibration = gather(couplings.graph, DATA)
    loss = prepare_loss(couplings.graph, calibration)
    questions = [question for group in couplings.groups for question in channel_questions(group, 1.0, 1)]
    inquiry = Inquiry(couplings, calibration, loss, Effort(cache=tmp_path))
    inquiry.measured(questions[:10])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    found = inquiry.measured(questions)
    assert (found.reused, found.path, found.dropped, len(found.answers)) == (9, path, 1, CHANNELS)
    alone = Inquiry(couplings, calibration, loss).measured(questions)
    assert (alone.reused, alone.path, alone.dropped, alone.answers) == (0, None, 0, found.answers)
