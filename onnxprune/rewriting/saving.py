"""
Write a model so that it appears whole or not at all.

Numbers that lay in files beside the original go to files beside the new model, of the same names and in the same order.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, NodeProto, StringStringEntryProto, TensorProto, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.files import Content, is_same, is_special, write_whole
from onnxprune.reading.graph import Graph, constant_tensor
from onnxprune.reading.numbers import (
    BLOCK_BYTES,
    PACKED_BITS,
    Place,
    Stored,
    byte_size,
    holding,
    numbers,
    source_of,
    tensors_of,
    without_numbers,
)
from onnxprune.rewriting.editing import copy_fields

COARSEST = 2**16
"""The largest alignment of offsets that is kept."""

FEWEST_BYTES = 1024
"""New constants below this size stay in the model's own file."""


def save_model(model: ModelProto, path: str | os.PathLike[str], *, source: Graph | None = None) -> tuple[Path, ...]:
    """
    Write the model: under other names in the same folder, and renamed when all is whole.

    Args:
        model: the model.
        path: its file.
        source: the model that it was pruned from, whose data files are never touched and whose layout is kept.

    Returns the data files beside the model, if it has any.

    Raises:
        OnnxPruneError: a file cannot be written.
        UsageError: the path is one of the source's data files.
    """
    contents = contents_of_model(model, Path(path), source)
    write_whole(contents, below=Path(path).parent)
    return tuple(contents)[:-1]


def contents_of_model(
    model: ModelProto, path: Path, source: Graph | None = None, *, own_names: bool = False
) -> dict[Path, Content]:
    """
    What the files will hold, the data before the model.

    Data files are named as the source's, or after the model where that would touch what is not its own; always so with
    `own_names`.
    """
    places = places_of(model, source)
    if not places:
        return {path: model.SerializeToString()}
    inputs = {place.path for place in (*places_of_source(source).values(), *places.values())}
    inputs |= {source.path} if source and source.path else set()
    if any(is_same(path, file) for file in inputs):
        raise UsageError(f"The output {str(path)!r} is an input, and inputs are never touched. Name another file.")
    files = data_files(model, places)
    names = file_names(files, path, inputs, own_names=own_names)
    contents: dict[Path, Content] = {}
    if not is_special(path):
        contents |= {path.parent / names[location]: file.write for location, file in files.items()}
    contents[path] = lambda out: out.write(referring_to(model, files, names).SerializeToString())
    return contents


def written_bytes(model: ModelProto, source: Graph) -> int:
    """The bytes of the model's files, where data files are named as the source's."""
    files = data_files(model, places_of(model, source))
    if not files:
        return int(model.ByteSize())
    referring = referring_to(model, files, {location: location for location in files})
    return int(referring.ByteSize()) + sum(file.end for file in files.values())


def data_files(model: ModelProto, places: Mapping[str, Place]) -> dict[str, DataFile]:
    """The data files by their location in the source, each with its tensors in the order that they had there."""
    files = {location: DataFile() for location in dict.fromkeys(place.location for place in places.values())}
    held = {name: tensor for name, tensor in named_tensors(model) if name in places}
    for name in sorted(places, key=lambda name: places[name].offset):
        files[places[name].location].add(name, held[name], places[name])
    return files


def places_of(model: ModelProto, source: Graph | None) -> dict[str, Place]:
    """For each tensor that goes to a data file, where the original has it or what it was made of."""
    original, found = places_of_source(source), {}
    for name, tensor in named_tensors(model):
        origin = source_of(tensor)
        if origin is not None:
            found[name] = origin.place
        elif name in original:
            found[name] = original[name]
    if original and source is not None:
        last = max(original.values(), key=lambda place: place.offset)
        for tensor in model.graph.initializer:
            is_new = tensor.name not in found and tensor.name not in source.constants
            if is_new and byte_size(tensor) >= FEWEST_BYTES:
                found[tensor.name] = last
    return found


def places_of_source(source: Graph | None) -> dict[str, Place]:
    """Where the original has its constants that are elsewhere."""
    constants = source.constants if source else {}
    origins = {name: source_of(constant.tensor) for name, constant in constants.items()}
    return {name: origin.place for name, origin in origins.items() if origin is not None}


def named_tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Initializers and what Constant nodes hold, by the name that is read."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if constant_tensor(node) is not None and node.attribute[0].HasField("t"):
            yield node.output[0], node.attribute[0].t


@dataclass
class DataFile:
    """The tensors of one file, each with its offset."""

    offsets: dict[str, int] = field(default_factory=dict)
    tensors: dict[str, TensorProto] = field(default_factory=dict)
    end: int = 0
    has_checksum: bool = False
    checksum: str = "0" * 40

    def add(self, name: str, tensor: TensorProto, place: Place) -> None:
        """One more tensor behind the others, aligned as it was."""
        alignment = min(COARSEST, place.offset & -place.offset) or 1
        self.offsets[name] = -(-self.end // alignment) * alignment
        self.tensors[name] = tensor
        self.end = self.offsets[name] + byte_size(tensor)
        self.has_checksum |= place.checksum

    def write(self, out: BinaryIO) -> None:
        """Write all, a tensor at a time."""
        digest, end = hashlib.sha1(usedforsecurity=False), 0
        for name, tensor in self.tensors.items():
            for chunk in chain([bytes(self.offsets[name] - end)], chunks_of(tensor)):
                out.write(chunk)
                if self.has_checksum:
                    digest.update(chunk)
            end = self.offsets[name] + byte_size(tensor)
        self.checksum = digest.hexdigest()


def chunks_of(tensor: TensorProto) -> Iterator[bytes]:
    """The bytes of the tensor's numbers as a file holds them."""
    origin = source_of(tensor)
    if isinstance(origin, Stored):
        yield from origin.chunks()
    else:
        yield from chunks_of_array(numbers(tensor), tensor.data_type)


def chunks_of_array(array: np.ndarray, data_type: int) -> Iterator[bytes]:
    """The bytes of an array, a few at a time, in the order of ONNX: little end first."""
    if data_type in PACKED_BITS:
        yield numpy_helper.from_array(array).raw_data
        return
    if sys.byteorder == "big":
        array = array.byteswap()
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for first in range(0, flat.size, BLOCK_BYTES):
        yield flat[first : first + BLOCK_BYTES].tobytes()


def referring_to(model: ModelProto, files: Mapping[str, DataFile], names: Mapping[str, str]) -> ModelProto:
    """The model as it is written beside these data files of these names."""
    made = ModelProto()
    copy_fields(model, made, skip={"graph"})
    copy_fields(model.graph, made.graph, skip={"node", "initializer"})
    where = {name: location for location, file in files.items() for name in file.tensors}
    for tensor in model.graph.initializer:
        location = where.get(tensor.name)
        made.graph.initializer.append(
            reference(tensor, tensor.name, names[location], files[location]) if location else holding(tensor)
        )
    for node in model.graph.node:
        copy = NodeProto()
        copy.CopyFrom(node)
        location = where.get(node.output[0]) if node.output else None
        if location and constant_tensor(node) is not None:
            held = copy.attribute[0].t
            held.CopyFrom(reference(held, node.output[0], names[location], files[location]))
        made.graph.node.append(copy)
    return made


def reference(tensor: TensorProto, name: str, location: str, file: DataFile) -> TensorProto:
    """The tensor with its place in the data file."""
    made = without_numbers(tensor)
    made.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(file.offsets[name]), "length": str(byte_size(tensor))}
    if file.has_checksum:
        entries["checksum"] = file.checksum
    made.external_data.extend(StringStringEntryProto(key=key, value=value) for key, value in entries.items())
    return made


def file_names(files: Mapping[str, DataFile], path: Path, inputs: set[Path], *, own_names: bool) -> dict[str, str]:
    """A name for each data file, relative to the model's folder, under which nothing is that is not the model's own."""
    owned = data_files_of(path)
    found: dict[str, str] = {}
    for location in files:
        for name in possible_names(location, path.stem, own_names):
            file = path.parent / name
            is_input = any(is_same(file, one) for one in (*inputs, path))
            if not is_input and (not file.exists() or name in owned) and name not in found.values():
                found[location] = name
                break
    return found


def possible_names(location: str, stem: str, own_names: bool) -> Iterator[str]:
    """The name itself, then names after the model."""
    whole = PurePosixPath(location)
    if not own_names:
        yield str(whole)
    yield str(whole.with_name(f"{stem}.{whole.name}"))
    number = 2
    while True:
        yield str(whole.with_name(f"{stem}.{number}.{whole.name}"))
        number += 1


def data_files_of(path: Path) -> frozenset[str]:
    """The data files of the model that is at this path now, if there is one."""
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError):
        return frozenset()
    entries = (entry for tensor in tensors_of(model.graph) for entry in tensor.external_data)
    return frozenset(entry.value for entry in entries if entry.key == "location")
