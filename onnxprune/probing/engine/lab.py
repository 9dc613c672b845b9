"""
A lab: a folder with all that a process needs to run probes, whichever process it is.

The weights lie in one file that every part of the model refers to, so processes on one machine share its pages. A
process elsewhere gets the folder's contents once and keeps them.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from onnx import ModelProto, StringStringEntryProto, TensorProto

from onnxprune.errors import OnnxPruneError
from onnxprune.reading.graph import Constant
from onnxprune.reading.numbers import holding

FOLDER = f"onnxprune-{platform.node()}-"
"""
How the names of labs' folders begin; the number of their process follows.

Machines may share the folder of temporary files, and know nothing of each other's processes.
"""
KEPT = "kept."
"""How the names of files begin that hold what comes across cuts."""
WEIGHTS = "weights.bin"
STORED_BYTES = 1024
"""Constants below this size are written into each part that reads them."""
PAGE = 4096
"""Constants begin on pages of this size, so that they can be mapped."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a lab is: its key, and the folder on the machine that made it."""

    key: str
    folder: str


class Lab:
    """
    The folder while it is being filled and used, until it is closed.

    Raises:
        OnnxPruneError: the disk does not take what is written.
    """

    def __init__(self) -> None:
        with on_disk():
            self._folder = own_folder()
        self._key, self._files = uuid.uuid4().hex, 0
        self._stored: dict[str, tuple[int, int]] = {}
        self._end = 0

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()

    @property
    def address(self) -> Address:
        """Where the lab is, by a key that changes with its contents."""
        return Address(f"{self._key}.{self._files}", self._folder.name)

    @property
    def path(self) -> Path:
        return Path(self._folder.name)

    def add_array(self, name: str, array: np.ndarray) -> None:
        """Write an array that processes map into their memory."""
        self._files += 1
        with on_disk():
            np.save(self.path / f"{name}.npy", array)

    def add_part(self, name: str, part: ModelProto) -> None:
        """Write a part of the model whose constants `store` has written."""
        self._files += 1
        with on_disk():
            (self.path / f"{name}.onnx").write_bytes(part.SerializeToString())

    def store(self, constant: Constant) -> TensorProto:
        """The constant as a part holds it: whole if it is small, else as a reference to the file of weights."""
        tensor = TensorProto(name=constant.name, data_type=constant.tensor.data_type, dims=constant.shape)
        if constant.name not in self._stored:
            raw = raw_bytes(constant)
            if raw is None or len(raw) < STORED_BYTES:
                tensor.CopyFrom(holding(constant.tensor))
                tensor.name = constant.name
                return tensor
            self._stored[constant.name] = self._written(raw)
        start, length = self._stored[constant.name]
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", str(start)), ("length", str(length))):
            tensor.external_data.append(StringStringEntryProto(key=key, value=value))
        return tensor

    def _written(self, raw: bytes) -> tuple[int, int]:
        start = -(-self._end // PAGE) * PAGE
        with on_disk(), open(self.path / WEIGHTS, "ab") as file:
            file.write(bytes(start - self._end) + raw)
        self._end = start + len(raw)
        return start, len(raw)

    def contents(self) -> dict[str, bytes]:
        """What a process needs that cannot see the folder; what comes across cuts it computes for itself."""
        needed = (path for path in sorted(self.path.iterdir()) if not path.name.startswith(KEPT))
        return {path.name: path.read_bytes() for path in needed}


def raw_bytes(constant: Constant) -> bytes | None:
    """The constant's numbers as they lie in memory; None for texts and for numbers that share a byte."""
    tensor = constant.tensor
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if tensor.data_type == TensorProto.STRING or constant.array().nbytes != constant.size * constant.array().itemsize:
        return None
    return None if constant.array().dtype.isbuiltin != 1 else np.ascontiguousarray(constant.array()).tobytes()


@contextmanager
def on_disk() -> Iterator[None]:
    """What the system refuses, told as what the user can do about it."""
    try:
        yield
    except OSError as failure:
        raise OnnxPruneError(
            f"Expected room in {tempfile.gettempdir()!r} for the weights and what is computed once for all probes: "
            f"{failure.strerror or failure}. Make room there, or set TMPDIR to a folder that has it."
        ) from None


def own_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder of this process; those that dead processes have left are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        owner = left.name.removeprefix(FOLDER).partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{FOLDER}{os.getpid()}-", ignore_cleanup_errors=True)


_unpacked: dict[str, tempfile.TemporaryDirectory[str]] = {}
_unpacking = threading.Lock()


@contextmanager
def folder_of(address: Address, contents: Mapping[str, bytes] | None) -> Iterator[Path | None]:
    """
    The lab's folder as this process sees it, unpacked from its contents if need be; None if there is neither.

    What was unpacked stays until another lab takes its place, and at least for the `with` block.
    """
    if Path(address.folder).is_dir():
        yield Path(address.folder)
        return
    with _unpacking:  # a worker may have several threads
        if address.key not in _unpacked and contents is not None:
            folder = own_folder()
            for name, content in contents.items():
                (Path(folder.name) / name).write_bytes(content)
            _unpacked.clear()  # labs of earlier runs are not needed any more
            _unpacked[address.key] = folder
        held = _unpacked.get(address.key)  # it is removed when nothing refers to it any more
    yield Path(held.name) if held else None
