"""Data files beside a model: found where they may be, measured, and read when numbers are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from onnx import ModelProto, NodeProto, TensorProto

from onnxprune.errors import ModelError
from onnxprune.reading.numbers import (
    Place,
    Stored,
    byte_size,
    held_by,
    holding,
    is_elsewhere,
    referring,
    source_of,
    tensors_of,
)


def refer_to_files(proto: ModelProto, path: Path | None) -> tuple[Stored, ...]:
    """
    Let every external tensor of the model know its file, without reading it; bodies and functions get their numbers.

    Returns what was found, in the order of the tensors.

    Raises:
        ModelError: a file is missing, too short, or not in the folder of the model.
    """
    found = []
    for tensor in tensors_of(proto.graph):
        if needs_file(tensor, path):
            found.append(stored_in_file(tensor, path))
            tensor.CopyFrom(referring(tensor, found[-1]))
    for tensor in inner_tensors(proto):
        if needs_file(tensor, path):
            found.append(stored_in_file(tensor, path))
            tensor.CopyFrom(holding(referring(tensor, found[-1])))
    return tuple(found)


def needs_file(tensor: TensorProto, path: Path | None) -> bool:
    """Is it external, and not one of those that were read before?"""
    return is_elsewhere(tensor) and (path is not None or source_of(tensor) is None)


def inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Tensors of bodies and functions, and those that make up sparse ones."""
    for function in proto.functions:
        for node in function.node:
            yield from held_by(node)
        yield from body_tensors(function.node)
    yield from body_tensors(proto.graph.node)
    for sparse in proto.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def body_tensors(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """Tensors in the bodies of these nodes, and of the bodies in those."""
    for node in nodes:
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from tensors_of(body)
                yield from body_tensors(body.node)


def stored_in_file(tensor: TensorProto, path: Path | None) -> Stored:
    """Where the numbers of an external tensor lie."""
    if path is None:
        raise ModelError(
            f"Expected a model whole in itself, found that the numbers of {tensor.name!r} lie in another file. "
            "Pass the model's path, so that the file can be found."
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or byte_size(tensor))
    except ValueError:
        raise refused(tensor, path, f"its offset or length is no number: {entries}.") from None
    file = checked_file(tensor, path, entries.get("location", ""))
    if length != byte_size(tensor):
        raise refused(tensor, path, f"{byte_size(tensor):,} bytes are needed, {length:,} are said to be there.")
    if offset < 0 or file.stat().st_size < offset + length:
        raise refused(tensor, path, f"{str(file)!r} ends before byte {offset + length:,}.")
    return Stored(Place(entries["location"], offset, "checksum" in entries, file), length)


def checked_file(tensor: TensorProto, path: Path, location: str) -> Path:
    """The data file, which has to lie in the model's folder."""
    parts = PurePosixPath(location).parts
    if not location or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive or ".." in parts:
        raise refused(tensor, path, f"the path {location!r} leads out of the model's folder.")
    file = path.parent / location
    if not file.resolve().is_relative_to(path.parent.resolve()):
        raise refused(tensor, path, f"{location!r} is a link that leads out of the model's folder.")
    if not file.is_file():
        raise refused(tensor, path, f"there is no file {str(file)!r}.")
    return file


def refused(tensor: TensorProto, path: Path, why: str) -> ModelError:
    """What is wrong with the place of a tensor's numbers."""
    return ModelError(
        f"Expected the numbers of {tensor.name!r} in a file beside {str(path)!r}: {why} Keep the files together."
    )
