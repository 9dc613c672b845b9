"""Concrete shapes, observed: the model's structure is run once with its weights replaced by zeros made on the fly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.reading.graph import Port, Shape, constant_tensor

KEPT_ELEMENTS = 4096
"""Tensors up to this size keep their real numbers in the structure that is run."""

VALUE_ELEMENTS = 4096
"""Integer tensors up to this size are remembered with their numbers."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Shapes of all tensors and numbers of the small integer ones, for inputs of `input_shapes`."""

    input_shapes: Mapping[str, Shape]
    shapes: Mapping[str, Shape]
    values: Mapping[str, np.ndarray]


def session_for(
    model: ModelProto | bytes | str, *, optimized: bool = True, threads: int = 0, keep_memory: bool = True
) -> ort.InferenceSession:
    """An ONNX Runtime CPU session, silent unless something fails; without `keep_memory` it frees what it can."""
    options = ort.SessionOptions()
    if not keep_memory:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        source = model.SerializeToString() if isinstance(model, ModelProto) else model
    except EncodeError:
        raise ModelError(
            "Expected a model of up to 2 GB, the most that Protobuf holds, found a larger one. "
            "It can be inspected, but not yet run and pruned."
        ) from None
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def observe_first(
    model: ModelProto, ports: Sequence[Port], given: Mapping[str, Shape], *, batch: int = 2
) -> Observation:
    """Observe the model at the first setting of its dynamic sizes at which it runs."""
    failures = []
    for input_shapes in settings(ports, given, batch=batch):
        try:
            return inferred(model, input_shapes) or observe(model, ports, input_shapes)
        except Exception as failure:  # ONNX Runtime raises many kinds; each means "not at these sizes"
            failures.append(str(failure).splitlines()[0])
    raise ModelError(
        f"The model does not run in ONNX Runtime at any input size tried (last: {input_shapes}): {failures[-1]} "
        "Check that it runs on its own; if only certain input sizes work, pass calibration data of such a size."
    )


def settings(ports: Sequence[Port], given: Mapping[str, Shape], *, batch: int) -> Iterator[dict[str, Shape]]:
    """Ways to fill in the dynamic sizes: distinct primes first, then common image and sequence sizes."""
    primes = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    for others in (primes, (8,), (64,), (224,), (32,), (1,), (128,), (640,)):
        names: dict[str, int] = {}
        fresh = itertools.cycle(others)
        filled: dict[str, Shape] = {}
        for port in ports:
            sizes = []
            for axis, size in enumerate(port.shape or ()):
                if isinstance(size, int):
                    sizes.append(size)
                elif port.name in given and axis < len(given[port.name]) and axis > 0:
                    sizes.append(given[port.name][axis])
                elif axis == 0:
                    sizes.append(batch)
                elif size is None:
                    sizes.append(next(fresh))
                else:
                    sizes.append(names.setdefault(size, batch if size == (port.shape or ())[0] else next(fresh)))
            filled[port.name] = tuple(sizes)
        yield filled
        if not any(
            axis > 0 and not isinstance(size, int) for port in ports for axis, size in enumerate(port.shape or ())
        ):
            return


def inferred(model: ModelProto, input_shapes: Mapping[str, Shape]) -> Observation | None:
    """Shapes by ONNX's inference alone; None unless it finds all of them and the graph computes no integers."""
    structure = without_weights(model)
    for port in structure.graph.input:
        for dim, size in zip(port.type.tensor_type.shape.dim, input_shapes[port.name], strict=False):
            dim.dim_value = size
    del structure.graph.value_info[:]
    try:
        found = onnx.shape_inference.infer_shapes(structure)
    except Exception:  # inference raises many kinds; running the model tells more
        return None
    infos = [*found.graph.value_info, *found.graph.output]
    known = {info.name: info.type.tensor_type for info in infos if info.type.HasField("tensor_type")}
    shapes = dict(input_shapes)
    for name in (name for node in model.graph.node for name in node.output if name):
        kind = known.get(name)
        if kind is None or not kind.HasField("shape") or not all(dim.HasField("dim_value") for dim in kind.shape.dim):
            return None
        shapes[name] = tuple(int(dim.dim_value) for dim in kind.shape.dim)
    constants = {node.output[0] for node in model.graph.node if constant_tensor(node) is not None}
    computed = [kind.elem_type for name, kind in known.items() if name not in constants and name in shapes]
    if any(element in (TensorProto.INT64, TensorProto.INT32) for element in computed):
        return None
    return Observation(dict(input_shapes), shapes, {})


def observe(model: ModelProto, ports: Sequence[Port], input_shapes: Mapping[str, Shape]) -> Observation:
    """Run the structure once; raises what ONNX Runtime raises when the sizes do not suit the model."""
    structure = without_weights(model)
    computed = [name for node in structure.graph.node for name in node.output if name]
    del structure.graph.output[:]
    structure.graph.output.extend(ValueInfoProto(name=name) for name in computed)
    del structure.graph.value_info[:]
    kinds = {output.name: output.type for output in session_for(structure, optimized=False).get_outputs()}

    tensors = [name for name in computed if kinds[name].startswith("tensor(")]
    integers = [name for name in tensors if kinds[name] in ("tensor(int64)", "tensor(int32)")]
    del structure.graph.output[:]
    for number, name in enumerate(tensors):
        structure.graph.node.append(helper.make_node("Shape", [name], [f"onnxprune.shape.{number}"]))
        structure.graph.output.append(ValueInfoProto(name=f"onnxprune.shape.{number}"))
    structure.graph.output.extend(ValueInfoProto(name=name) for name in integers)

    feeds = {port.name: np.zeros(input_shapes[port.name], port.dtype) for port in ports}
    found = session_for(structure, optimized=False, keep_memory=False).run(None, feeds)
    shapes = {name: tuple(int(size) for size in shape) for name, shape in zip(tensors, found, strict=False)}
    shapes |= {port.name: tuple(input_shapes[port.name]) for port in ports}
    numbers = zip(integers, found[len(tensors) :], strict=True)
    values = {name: value for name, value in numbers if value.size <= VALUE_ELEMENTS}
    return Observation(dict(input_shapes), shapes, values)


def without_weights(model: ModelProto) -> ModelProto:
    """The same graph, each large weight made at run time, when it is needed, as zeros; small ones as they are."""
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = bare.graph
    graph.name = model.graph.name or "structure"
    weights = {tensor.name for tensor in model.graph.initializer}
    graph.input.extend(port for port in model.graph.input if port.name not in weights)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    waiting = {tensor.name: tensor for tensor in model.graph.initializer if large(tensor)}
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name not in waiting)
    data = {port.name for port in graph.input}
    for node in model.graph.node:
        held = constant_tensor(node)
        if held is not None and large(held):
            waiting[node.output[0]] = held
            continue
        has_body = any(attribute.HasField("g") for attribute in node.attribute)
        needed = list(waiting) if has_body else [name for name in dict.fromkeys(node.input) if name in waiting]
        source = next((name for name in node.input if name in data), None)
        for name in needed:
            graph.node.extend(zeros_like(waiting.pop(name), name, source, graph))
        graph.node.append(node)
        if held is None and (source is not None or has_body):
            data.update(name for name in node.output if name)
    for name, tensor in waiting.items():
        graph.node.extend(zeros_like(tensor, name, None, graph))
    return bare


def large(tensor: TensorProto) -> bool:
    """Is this a weight whose numbers cannot matter to any shape?"""
    index_types = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING)
    return int(np.prod(tensor.dims, dtype=np.int64)) > KEPT_ELEMENTS and tensor.data_type not in index_types


def zeros_like(tensor: TensorProto, name: str, source: str | None, graph: GraphProto) -> list[NodeProto]:
    """
    Nodes that make zeros of the tensor's shape and type under the tensor's name.

    A detour over `source`, which the weight's reader needs too, keeps the runtime from making all weights at once.
    """
    dims, nothing, nodes = f"onnxprune.dims.{name}", "onnxprune.nothing", []
    graph.initializer.append(numpy_helper.from_array(np.array(tensor.dims, np.int64), dims))
    if source is not None:
        if all(known.name != nothing for known in graph.initializer[:1]):
            graph.initializer.insert(0, numpy_helper.from_array(np.array(0, np.int64), nothing))
        nodes += [
            helper.make_node("Size", [source], [f"{dims}.size"]),
            helper.make_node("Mul", [f"{dims}.size", nothing], [f"{dims}.nothing"]),
            helper.make_node("Add", [dims, f"{dims}.nothing"], [f"{dims}.late"]),
        ]
        dims = f"{dims}.late"
    dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    zero = numpy_helper.from_array(np.zeros(1, dtype))
    return [*nodes, helper.make_node("ConstantOfShape", [dims], [name], value=zero)]
