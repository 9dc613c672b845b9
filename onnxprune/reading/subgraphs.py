"""The part of a model that some tensors are computed by, as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable

from onnx import ModelProto, ValueInfoProto

from onnxprune.reading.graph import read_by


def up_to(model: ModelProto, names: Iterable[str]) -> ModelProto:
    """The model with these tensors as outputs, and nothing in it that they do not need."""
    wanted = list(dict.fromkeys(names))
    part = ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    part.graph.name = model.graph.name or "part"
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(node.output):
            nodes.append(node)
            needed.update(read_by(node))
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    weights = {tensor.name for tensor in model.graph.initializer}
    part.graph.input.extend(port for port in model.graph.input if port.name in needed and port.name not in weights)
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    return part
