"""
The numbers of a tensor, wherever they lie: in the tensor itself, in a file, or still to be made of another tensor's.

A tensor whose numbers lie elsewhere is external to ONNX, and its location is a name of our own, known in this process
alone. So no path in a file is ever followed by anybody but the reader that checked it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, numpy_helper

Shape = tuple[int, ...]

LARGEST_WHOLE = 2**31 - 2**24
"""Bytes of weights up to which a model is held as one message; Protobuf allows 2 GB with all the rest."""

BLOCK_BYTES = 2**24
"""How much is read at once where not all is needed at once."""

PACKED_BITS = {
    number: int(bits)
    for name, number in TensorProto.DataType.items()
    for kind, bits in (("INT4", 4), ("UINT4", 4), ("FLOAT4E2M1", 4), ("INT2", 2), ("UINT2", 2))
    if name == kind
}
"""Element types of which several share a byte."""

OWN_FIELDS = frozenset({"name", "data_type", "dims", "doc_string", "metadata_props"})
"""What a tensor says besides its numbers."""

PREFIX = "onnxprune:"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a data file has, or had, a tensor: its path as the model says it, the offset; and has it a checksum?"""

    location: str
    offset: int
    checksum: bool
    path: Path


@dataclass(frozen=True, slots=True)
class Stored:
    """Numbers in a file."""

    place: Place
    length: int

    def array(self, data_type: int, shape: Shape) -> np.ndarray:
        """All of them."""
        if data_type in PACKED_BITS:
            raw = np.fromfile(self.place.path, np.uint8, self.length, offset=self.place.offset).tobytes()
            return np.array(numpy_helper.to_array(TensorProto(data_type=data_type, dims=shape, raw_data=raw)))
        return self.rows(data_type, shape, 0, shape[0] if shape else 1)

    def rows(self, data_type: int, shape: Shape, first: int, last: int) -> np.ndarray:
        """Those with such a position along the first axis."""
        dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
        each = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        offset = self.place.offset + first * each
        raw = np.fromfile(self.place.path, np.uint8, (last - first) * each, offset=offset)
        array = raw.view(dtype)
        if sys.byteorder == "big":
            array = array.byteswap()
        return array.reshape((last - first, *shape[1:]) if shape else ())

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a few at a time."""
        with open(self.place.path, "rb") as file:
            file.seek(self.place.offset)
            left = self.length
            while left > 0:
                chunk = file.read(min(left, BLOCK_BYTES))
                if not chunk:
                    raise OSError(f"{self.place.path} has become shorter")
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True, slots=True)
class Made:
    """Numbers made when they are asked for, of a tensor that was at this place."""

    place: Place
    make: Callable[[], np.ndarray]


_SOURCES: dict[str, Stored | Made] = {}
"""By the name that stands as location in the tensor; each is small."""


def referring(tensor: TensorProto, source: Stored | Made) -> TensorProto:
    """The tensor with its numbers elsewhere."""
    made = without_numbers(tensor)
    name = f"{PREFIX}{len(_SOURCES)}"
    _SOURCES[name] = source
    made.data_location = TensorProto.EXTERNAL
    made.external_data.append(StringStringEntryProto(key="location", value=name))
    return made


def without_numbers(tensor: TensorProto) -> TensorProto:
    """Name, type, shape and texts."""
    made = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    if tensor.HasField("doc_string"):
        made.doc_string = tensor.doc_string
    made.metadata_props.extend(tensor.metadata_props)
    return made


def source_of(tensor: TensorProto) -> Stored | Made | None:
    """Where its numbers come from, if they are elsewhere."""
    if not is_elsewhere(tensor):
        return None
    return next((_SOURCES.get(entry.value) for entry in tensor.external_data if entry.key == "location"), None)


def is_elsewhere(tensor: TensorProto) -> bool:
    """Are the numbers not in the tensor itself?"""
    return tensor.data_location == TensorProto.EXTERNAL


def numbers(tensor: TensorProto) -> np.ndarray:
    """The numbers, as an array of the tensor's shape that may be written to."""
    source = source_of(tensor)
    if isinstance(source, Stored):
        return source.array(tensor.data_type, tuple(tensor.dims))
    if isinstance(source, Made):
        return source.make()
    return np.array(numpy_helper.to_array(tensor))


def blocks(tensor: TensorProto) -> Iterator[tuple[int, np.ndarray]]:
    """The numbers in blocks along the first axis, each with its first position; small tensors in one."""
    source, shape = source_of(tensor), tuple(tensor.dims)
    if not isinstance(source, Stored) or byte_size(tensor) <= BLOCK_BYTES or tensor.data_type in PACKED_BITS:
        yield 0, numbers(tensor)
        return
    step = max(1, BLOCK_BYTES * shape[0] // byte_size(tensor))
    for first in range(0, shape[0], step):
        yield first, source.rows(tensor.data_type, shape, first, min(first + step, shape[0]))


def byte_size(tensor: TensorProto) -> int:
    """The bytes its numbers take in a file."""
    size = int(np.prod(tensor.dims, dtype=np.int64))
    if tensor.data_type in PACKED_BITS:
        return -(-size * PACKED_BITS[tensor.data_type] // 8)
    if tensor.data_type == TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return size * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def holding(tensor: TensorProto) -> TensorProto:
    """The tensor with its numbers in it; itself if they are."""
    if not is_elsewhere(tensor):
        return tensor
    made = without_numbers(tensor)
    made.raw_data = numpy_helper.from_array(np.ascontiguousarray(numbers(tensor))).raw_data
    return made


def held_by(node: NodeProto) -> Iterator[TensorProto]:
    """Tensors among the attributes of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t


def tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    """Initializers of a graph, and tensors that its nodes hold; not those of bodies in it."""
    return itertools.chain(graph.initializer, *(held_by(node) for node in graph.node))


def has_elsewhere(model: ModelProto) -> bool:
    """Does any tensor have its numbers elsewhere?"""
    return any(is_elsewhere(tensor) for tensor in tensors_of(model.graph))


def whole(model: ModelProto) -> ModelProto:
    """The model with all its numbers; itself if it has them."""
    if not has_elsewhere(model):
        return model
    made = ModelProto()
    made.CopyFrom(model)
    for tensor in tensors_of(made.graph):
        if is_elsewhere(tensor):
            tensor.CopyFrom(holding(tensor))
    return made


def fits_whole(model: ModelProto) -> bool:
    """Can it be one message with all its numbers?"""
    return sum(byte_size(tensor) for tensor in tensors_of(model.graph)) <= LARGEST_WHOLE


def stored_bytes(model: ModelProto) -> int:
    """The bytes that the model takes in files."""
    elsewhere = sum(byte_size(tensor) for tensor in tensors_of(model.graph) if is_elsewhere(tensor))
    return int(model.ByteSize()) + elsewhere
