"""The part of a model that some tensors are computed by, as a model of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import ModelProto, ValueInfoProto, helper

from onnxprune.reading.graph import read_by


def up_to(model: ModelProto, names: Iterable[str], given: Mapping[str, int] | None = None) -> ModelProto:
    """
    The model with these tensors as outputs, and nothing in it that they do not need.

    Tensors that are `given`, each with its element type, are inputs of it, so that it needs nothing that makes them.
    """
    inputs = given or {}
    wanted = list(dict.fromkeys(names))
    part = ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    part.graph.name = model.graph.name or "part"
    needed, nodes = set(wanted), []
    for node in reversed(model.graph.node):
        if not needed.isdisjoint(name for name in node.output if name not in inputs):
            nodes.append(node)
            needed.update(read_by(node))
    part.graph.node.extend(reversed(nodes))
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed - inputs.keys())
    part.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    known = {tensor.name for tensor in model.graph.initializer} | inputs.keys()
    part.graph.input.extend(port for port in model.graph.input if port.name in needed - known)
    part.graph.input.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items())
    part.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
    return part
