"""Files that appear whole or not at all, and places that can be written to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from onnxprune.errors import OnnxPruneError, UsageError

Content = bytes | Callable[[BinaryIO], object]
"""What a file will hold: its bytes, or what writes them."""


def write_whole(contents: Mapping[Path, Content], *, below: Path | None = None) -> None:
    """
    Write files so that all of them appear whole, or none at all.

    Each is written under another name beside its place; when all are there, they are renamed, in order. Folders that
    are missing `below` one are made, and go again if writing fails. A device or pipe just gets its bytes.
    """
    written: dict[Path, Path] = {}
    folders: list[Path] = []
    renamed: list[Path] = []
    path, done = Path(), False
    try:
        for path, content in contents.items():
            if is_special(path):
                with path.open("wb") as file:
                    put(content, file)
                continue
            real = path.resolve()
            folders += made_folders(real.parent, below)
            handle, name = tempfile.mkstemp(prefix=f".{real.name[:64]}.", suffix=".part", dir=real.parent)
            written[Path(name)] = real
            with os.fdopen(handle, "wb") as file:
                put(content, file)
            Path(name).chmod(0o666 & ~current_umask())
        for temporary, path in written.items():
            is_new = not path.exists()
            temporary.replace(path)
            renamed += [path] if is_new else []
        done = True
    except OSError as failure:
        reason = failure.strerror or failure
        raise OnnxPruneError(f"Cannot write {str(path)!r}: {reason}. Choose another place.") from None
    finally:
        for temporary in written:
            temporary.unlink(missing_ok=True)
        if not done:
            undo(renamed, folders)


def undo(files: Sequence[Path], folders: Sequence[Path]) -> None:
    """Take away files that are new, and folders that were made for them."""
    for path in files:
        path.unlink()
    for folder in reversed(folders):
        folder.rmdir()


def put(content: Content, file: BinaryIO) -> None:
    """Write the content."""
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)


def made_folders(folder: Path, below: Path | None) -> list[Path]:
    """The folders that had to be made for this one to be there."""
    if below is None or not folder.is_relative_to(below.resolve()):
        return []
    missing = [place for place in (folder, *folder.parents) if not place.exists()][::-1]
    for place in missing:
        place.mkdir()
    return missing


def is_special(path: Path) -> bool:
    """Is it there, but no file or folder: a device such as /dev/null, or a pipe?"""
    return path.exists() and not path.is_file() and not path.is_dir()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_target(path: str | os.PathLike[str], *, source: Path | None) -> None:
    """
    Refuse, before any work is done, a path that could not be written or that is an input.

    Raises:
        UsageError: the folder is missing or not writable, the path is a folder, or it is the file that is read.
    """
    target = Path(path)
    try:
        check_place(target, source)
    except OSError as failure:
        raise UsageError(
            f"Cannot write {str(target)!r}: {failure.strerror or failure}. Choose another place."
        ) from None


def check_place(target: Path, source: Path | None) -> None:
    """As `check_target`; what the system refuses comes as OSError."""
    if source is not None and is_same(target, source):
        raise UsageError(f"The output {str(target)!r} is an input, and inputs are never touched. Name another file.")
    if target.is_dir():
        raise UsageError(f"Expected a file name to write to, found the folder {str(target)!r}. Name a file in it.")
    if is_special(target):
        return
    folder = target.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"Cannot write {str(target)!r}: there is no folder {str(target.parent)!r}. Make it first.")
    with tempfile.TemporaryFile(dir=folder):  # what the permissions say is not all: disks are full or read-only
        pass


def is_same(one: Path, other: Path) -> bool:
    """Do both paths lead to one file, there or yet to be written?"""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
