"""
A journal: answers in a file that outlives the process, so that an interrupted run is not lost.

A header, then a line for each answer::

    {"format": "onnxprune-journal", "version": 1, "key": "5f2c…", "model": "9a31…", "loss": "kl", "samples": 32}
    {"group": "conv1", "question": "channel 0, order 1, delta 1.0", "mean": 0.125, "error": 0.5, "crc32": 3631027459}

A line is trusted if it is, byte for byte, what would be written for what it says; others are dropped, never mended.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.coupling.couple import Couplings
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.files import write_whole
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.losses import Loss

MEANING = "onnxprune answers 1"
"""Part of every key; to be changed when questions of the same name come to have other answers."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a line says: the mean over the samples for a group's question, and the standard error of that mean."""

    group: str
    question: str
    mean: float
    error: float


@dataclass(frozen=True, slots=True)
class Journal:
    """
    A journal as it was when it was opened: `entries` by group and question, and how many lines were `dropped`.

    Runs may share a journal: no line gets mixed up with another. Those written while another run opens it may be lost.
    """

    path: Path
    header: bytes
    entries: Mapping[tuple[str, str], Entry]
    dropped: int

    def append(self, entry: Entry) -> None:
        """
        Write one more line, in one piece; it is there even if this process is killed at once.

        The file is opened anew for each: another run may have replaced it, or somebody removed it.

        Raises:
            OnnxPruneError: the line cannot be written.
        """
        line = line_of(entry)
        try:
            with open(self.path, "ab", buffering=0) as file:
                line = line if file.tell() else self.header + line
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as failure:
            raise OnnxPruneError(
                f"Expected to add an answer to the journal {str(self.path)!r}: {failure.strerror or failure}. "
                "Mend that and run again: the answers before this one are kept."
            ) from None


def open_journal(folder: str | os.PathLike[str], key: str, about: Mapping[str, str | int]) -> Journal:
    """
    The journal of this key, begun if there is none; lines that cannot be trusted are gone from its file.

    Args:
        folder: where it lies, under a name from the key; made if it is missing.
        key: tells these answers from all others.
        about: what the header says to people; follows from the key.

    Raises:
        OnnxPruneError: the folder or the file cannot be read and written.
    """
    path = Path(folder) / f"{key[:16]}.jsonl"
    header = json_line({"format": "onnxprune-journal", "version": 1, "key": key, **about})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError(errno.EINVAL, "there is something else than a file")
        content = path.read_bytes() if path.exists() else b""
        first, *others = content.splitlines(keepends=True) or [b""]
        trusted = [(line, entry) for line in others if (entry := entry_in(line))] if first == header else []
        whole = header + b"".join(line for line, _ in trusted)
        if content != whole:
            write_whole({path: whole})
        path.open("ab").close()  # a file that cannot be written is better known now than after the first answer
    except OSError as failure:
        raise UsageError(
            f"Expected a folder for the journal of probes at {str(folder)!r}, found that {str(path)!r} cannot be "
            f"read and written: {failure.strerror or failure}. Name another folder."
        ) from None
    dropped = len(others) - len(trusted) + (first not in (header, b""))
    return Journal(path, header, {(entry.group, entry.question): entry for _, entry in trusted}, dropped)


def entry_in(line: bytes) -> Entry | None:
    """What a line says; None if that would not be written so."""
    try:
        said = json.loads(line)
        entry = Entry(str(said["group"]), str(said["question"]), float(said["mean"]), float(said["error"]))
        return entry if line_of(entry) == line else None
    except Exception:  # garbage fails in many ways: no text, no JSON, brackets too deep, numbers too long
        return None


def line_of(entry: Entry) -> bytes:
    """The line that says this, with a checksum of the rest of it; floats come back from it to the last bit."""
    mean, error = spelled(entry.mean), spelled(entry.error)
    said = {"group": entry.group, "question": entry.question, "mean": mean, "error": error}
    return json_line({**said, "crc32": zlib.crc32(json_line(said))})


def spelled(number: float) -> float | str:
    """The number, or the text "nan", "inf" or "-inf", as JSON has no such numbers."""
    return number if math.isfinite(number) else str(number)


def json_line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def journal_key(couplings: Couplings, calibration: Calibration, loss: Loss) -> str:
    """
    A key, 64 hexadecimal digits, that differs wherever the same question may have another answer.

    Processes, memory and the like are not in it. A loss of the user's own has no key: it cannot be told from another.
    """
    assert loss.user is None
    digest = hashlib.sha256()
    for part in parts_of_key(couplings, calibration, loss):
        text, content = (part, b"") if isinstance(part, str) else (f"{part.dtype} {part.shape}", part.tobytes())
        for piece in (text.encode(), content):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def parts_of_key(couplings: Couplings, calibration: Calibration, loss: Loss) -> Iterator[str | np.ndarray]:
    """
    What answers follow from: the model, its groups, the samples, the loss with its labels.

    What the model itself gave, such as the targets of a distance, goes in to six digits: its last ones differ from one
    kind of processor to another.
    """
    yield MEANING
    yield couplings.graph.sha256
    yield repr([(group.name, group.slices, [dim.size for dim in group.dims]) for group in couplings.groups])
    for name, values in sorted(calibration.arrays.items()):
        yield name
        yield values
    yield repr((loss.name, loss.outputs, loss.class_axis, loss.probabilities, loss.stacked))
    for name, values in sorted(loss.targets.items()):
        yield name
        yield values if loss.name == "cross-entropy" else f"{values.shape} {np.abs(values).mean():.6g}"
    yield from (f"{name} {energy:.6g}" for name, energy in sorted(loss.energies.items()))
