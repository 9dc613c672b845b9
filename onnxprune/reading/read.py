"""Read a model from a path, bytes or a ModelProto into a `Graph`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxprune.errors import ModelError
from onnxprune.reading.graph import Graph, Shape, constants_of, nodes_of, ports_of
from onnxprune.reading.observing import observe_first

Model = str | os.PathLike[str] | bytes | ModelProto


def read(model: Model, *, input_shapes: Mapping[str, Shape] | None = None) -> Graph:
    """
    The model as an immutable `Graph`.

    Args:
        model: a path, the bytes of an ONNX file, or a ModelProto. External data stay on disk.
        input_shapes: concrete shapes by input name, for models that only run at certain sizes; sizes the model fixes
            and the first axis (the batch) are not taken from it.

    Raises:
        ModelError: no such file, not an ONNX model, or ONNX Runtime cannot run it.
    """
    path, raw = raw_bytes(model)
    proto = model if isinstance(model, ModelProto) else parsed(raw, path)
    sha256, file_bytes = hashlib.sha256(raw).hexdigest(), len(raw) + external_bytes(proto)
    del raw
    folder = str(path.parent) if path else ""
    inputs = tuple(ports_of(proto.graph))
    check_inputs(inputs)
    observed = observe_first(proto, inputs, input_shapes or {})
    constants = constants_of(proto.graph, folder)
    return Graph(
        model=proto,
        sha256=sha256,
        folder=folder,
        path=path,
        file_bytes=file_bytes,
        nodes=tuple(nodes_of(proto.graph)),
        inputs=inputs,
        outputs=tuple(ports_of(proto.graph, outputs=True)),
        constants=constants,
        input_shapes=observed.input_shapes,
        shapes={**observed.shapes, **{name: constant.shape for name, constant in constants.items()}},
        values=observed.values,
    )


def raw_bytes(model: Model) -> tuple[Path | None, bytes]:
    """The model's file, if it has one, and its bytes."""
    if isinstance(model, ModelProto):
        return None, model.SerializeToString(deterministic=True)
    if isinstance(model, bytes):
        return None, model
    path = Path(model)
    try:
        return path, path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"Expected an ONNX file at {str(path)!r}, found nothing there. Check the path.") from None
    except OSError as failure:
        reason = failure.strerror
        raise ModelError(f"Expected a readable ONNX file at {str(path)!r}: {reason}. Check the path.") from None


def parsed(raw: bytes, path: Path | None) -> ModelProto:
    """The bytes as a ModelProto with at least one node."""
    where = f"{str(path)!r}" if path else "the bytes given"
    try:
        proto = onnx.load_model_from_string(raw)
    except DecodeError:
        raise ModelError(f"Expected an ONNX model in {where}, found something else. Export the model again.") from None
    if not proto.graph.node:
        raise ModelError(f"Expected an ONNX model in {where}, found no nodes in it. Export the model again.")
    return proto


def check_inputs(inputs: tuple[object, ...]) -> None:
    """Refuse what cannot be fed."""
    for port in inputs:
        if getattr(port, "element_type", 0) == 0:
            name = getattr(port, "name", "?")
            raise ModelError(f"Expected tensors as inputs, found input {name!r} of another kind. It is not supported.")


def external_bytes(proto: ModelProto) -> int:
    """Bytes of the numbers kept outside the model file."""
    total = 0
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            total += sum(int(entry.value) for entry in tensor.external_data if entry.key == "length")
    return total
