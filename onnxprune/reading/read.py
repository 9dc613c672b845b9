"""Read a model from a path, bytes or a ModelProto into a `Graph`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto

from onnxprune.errors import ModelError, UsageError
from onnxprune.reading.bodies import inventory
from onnxprune.reading.external import refer_to_files
from onnxprune.reading.functions import inlined
from onnxprune.reading.graph import Graph, Shape, constants_of, ports_of
from onnxprune.reading.names import with_unique_names
from onnxprune.reading.observing import observe_first
from onnxprune.reading.sparse import densified
from onnxprune.reading.straightening import straightened, with_true_records

Model = str | os.PathLike[str] | bytes | ModelProto


def read(model: Model, *, input_shapes: Mapping[str, Shape] | None = None) -> Graph:
    """
    The model as an immutable `Graph`.

    Args:
        model: a path, the bytes of an ONNX file, or a ModelProto. Numbers in files beside the model are read there.
        input_shapes: concrete shapes by input name, for models that only run at certain sizes; sizes the model fixes
            and the first axis (the batch) are not taken from it.

    Raises:
        ModelError: no such file, not an ONNX model, or ONNX Runtime cannot run it.
    """
    file = load(model)
    plain, inlining = inlined(file.model)
    proto, renamed = with_unique_names(plain)
    inputs = tuple(ports_of(proto.graph))
    check_inputs(inputs)
    observed = observe_first(proto, inputs, input_shapes or {})
    proto, untrue = with_true_records(proto, observed)
    constants = constants_of(proto.graph)
    found = inventory(proto.graph)
    return Graph(
        model=proto,
        digest=file.digest,
        path=file.path,
        file_bytes=file.bytes,
        notes=(*file.notes, *untrue),
        nodes=found.nodes,
        protos=found.protos,
        bodies=found.bodies,
        renamed=renamed,
        inlining=inlining,
        inputs=inputs,
        outputs=tuple(ports_of(proto.graph, outputs=True)),
        constants=constants,
        input_shapes=observed.input_shapes,
        shapes={**observed.shapes, **{name: constant.shape for name, constant in constants.items()}},
        values=observed.values,
        element_types=observed.element_types,
    )


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model; `digest` finds the sha256 of its file and of the numbers beside it, `bytes` are those of both."""

    model: ModelProto
    path: Path | None
    digest: Callable[[], str]
    bytes: int
    notes: tuple[str, ...]
    """What had to be put right."""


def load(model: Model) -> ModelFile:
    """
    The model before anything is known about it.

    Raises:
        ModelError: no such file, not an ONNX model, or its numbers are not there.
    """
    path, raw = raw_bytes(model)
    proto = model if isinstance(model, ModelProto) else parsed(raw, place(model))
    if not proto.graph.node:
        raise ModelError(f"Expected an ONNX model in {place(model)}, found no nodes in it. Export the model again.")
    known, size = hashlib.sha256(raw), len(raw)
    del raw
    beside = refer_to_files(proto, path)

    def digest() -> str:
        found = known.copy()
        for stored in beside:
            for chunk in stored.chunks():
                found.update(chunk)
        return found.hexdigest()

    straight, notes = straightened(densified(proto))
    return ModelFile(straight, path, digest, size + sum(stored.length for stored in beside), notes)


def raw_bytes(model: Model) -> tuple[Path | None, bytes]:
    """The model's file, if it has one, and its bytes."""
    if isinstance(model, ModelProto):
        try:
            return None, model.SerializeToString(deterministic=True)
        except EncodeError:
            raise ModelError(
                "Expected a ModelProto of up to 2 GB, the most that Protobuf holds, found a larger one. "
                "Save it with external data, and pass the path."
            ) from None
    if isinstance(model, bytes):
        return None, model
    if not isinstance(model, str | os.PathLike):
        raise UsageError(f"Expected a model as path, bytes or ModelProto, found {model!r}.")
    path = Path(model)
    try:
        return path, path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"Expected an ONNX file at {str(path)!r}, found nothing there. Check the path.") from None
    except OSError as failure:
        reason = failure.strerror
        raise ModelError(f"Expected a readable ONNX file at {str(path)!r}: {reason}. Check the path.") from None


def parsed(raw: bytes, where: str) -> ModelProto:
    """The bytes as a ModelProto."""
    try:
        return onnx.load_model_from_string(raw)
    except DecodeError:
        raise ModelError(
            f"Expected an ONNX model in {where}, found something else or only a part of one. Export the model again."
        ) from None


def place(model: Model) -> str:
    """Where the model came from."""
    if isinstance(model, bytes | ModelProto):
        return f"the {'bytes' if isinstance(model, bytes) else 'ModelProto'} given"
    return repr(str(model))


def check_inputs(inputs: tuple[object, ...]) -> None:
    """Refuse what cannot be fed."""
    for port in inputs:
        if getattr(port, "element_type", 0) == 0:
            name = getattr(port, "name", "?")
            raise ModelError(f"Expected tensors as inputs, found input {name!r} of another kind. It is not supported.")
