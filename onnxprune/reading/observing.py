"""Concrete shapes, observed: the model's structure is run once with its weights replaced by zeros made on the fly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import EncodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.reading.bodies import Entry, Passing, inventory, passings
from onnxprune.reading.graph import (
    NUMPY_TYPES,
    Constant,
    Node,
    Port,
    Shape,
    constant_tensor,
    constants_of,
    outer_names,
)

IN_FLOATS = ("session.qdq_matmulnbits_accuracy_level", "1")
"""
Keeps ONNX Runtime from rounding what it multiplies with dequantised weights to eight bits: equal models would differ.
"""

KEPT_ELEMENTS = 4096
"""Tensors up to this size keep their real numbers in the structure that is run."""

VALUE_ELEMENTS = 4096
"""Tensors that count or decide are remembered with their numbers up to this size."""

COUNTABLE = ("tensor(int64)", "tensor(int32)", "tensor(bool)")
"""What may count or decide, so that its numbers are of interest."""

ELEMENT_TYPES = {f"tensor({name.lower()})": number for name, number in TensorProto.DataType.items()}
"""ONNX element types by the names that ONNX Runtime gives to tensors of them."""


MOST_TRIED = 64
"""Combinations of sizes that are tried in the end, each size for itself."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Shapes and element types of all tensors, numbers of small ones that count, for inputs of `input_shapes`."""

    input_shapes: Mapping[str, Shape]
    shapes: Mapping[str, Shape]
    values: Mapping[str, np.ndarray]
    element_types: Mapping[str, int]

    def sample(self, name: str) -> np.ndarray:
        """Numbers for a tensor: its own where they are known, else zeros."""
        dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(self.element_types[name])
        return self.values[name] if name in self.values else np.zeros(self.shapes[name], dtype)

    def with_all_of(self, other: Observation) -> Observation:
        """This, and what was seen of other tensors."""
        return Observation(
            self.input_shapes,
            {**other.shapes, **self.shapes},
            {**other.values, **self.values},
            {**other.element_types, **self.element_types},
        )


CPU = "CPUExecutionProvider"
Session: TypeAlias = ort.InferenceSession


def session_for(
    model: ModelProto | bytes | str,
    *,
    optimized: bool = True,
    threads: int = 0,
    keep_memory: bool = True,
    provider: str = CPU,
) -> Session:
    """
    A session of ONNX Runtime, silent unless something fails; without `keep_memory` it frees what it can.

    A `provider` other than the CPU's is asked first, and the CPU's runs what it cannot.
    """
    options = ort.SessionOptions()
    if not keep_memory:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry(*IN_FLOATS)
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        source = model.SerializeToString() if isinstance(model, ModelProto) else model
    except EncodeError:
        raise ModelError(
            "Expected a model of up to 2 GB, the most that Protobuf holds, found a larger one. "
            "It can be inspected, but not yet run and pruned."
        ) from None
    try:
        return ort.InferenceSession(source, options, providers=list(dict.fromkeys((provider, CPU))))
    except Exception as failure:  # ONNX Runtime raises many kinds
        first = str(failure).splitlines()[0]
        raise ModelError(
            f"ONNX Runtime does not take the model: {first} Check that it loads in ONNX Runtime by itself."
        ) from None


def observe_first(model: ModelProto, ports: Sequence[Port], given: Mapping[str, Shape]) -> Observation:
    """Observe the model at the first setting of its dynamic sizes at which it runs."""
    failures = []
    for input_shapes in settings(ports, given):
        try:
            return observe(model, ports, input_shapes)
        except Exception as failure:  # ONNX Runtime raises many kinds; each means "not at these sizes"
            failures.append(str(failure).splitlines()[0])
    raise ModelError(
        f"The model does not run in ONNX Runtime at any input size tried (last: {input_shapes}): {failures[-1]} "
        "Check that it runs on its own; if only certain input sizes work, pass calibration data of such a size."
    )


def settings(ports: Sequence[Port], given: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    """
    Ways to fill in the dynamic sizes: a batch of 2 with distinct primes first, then common sizes, then a batch of 1.

    A dimension name has one size wherever it stands; sizes that data give (all but the batch) come before made-up ones.
    """
    primes = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    for batch, others in itertools.product((2, 1), (primes, (8,), (64,), (224,), (32,), (1,), (128,), (640,))):
        names: dict[str, int] = {}
        fresh = itertools.cycle(others)
        yield {port.name: filled(port, given.get(port.name, ()), batch, names, fresh) for port in ports}
    yield from itertools.islice(each_its_own(ports, given), MOST_TRIED)


def each_its_own(ports: Sequence[Port], given: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    """The same with a batch of 1 and every combination of a few sizes for what nobody says anything about."""
    unsaid = sum(not isinstance(said, int) for port in ports for said in (port.shape or ())[1:])
    for sizes in itertools.product((1, 512, 256, 64), repeat=unsaid):
        names: dict[str, int] = {}
        fresh = itertools.cycle(sizes or (1,))
        yield {port.name: filled(port, given.get(port.name, ()), 1, names, fresh) for port in ports}


def filled(port: Port, given: Shape, batch: int, names: dict[str, int], fresh: Iterator[int]) -> Shape:
    """Concrete sizes for one input; names that get a size here are remembered in `names`."""
    sizes = []
    given = given[1:] if len(given) == len(port.shape or ()) + 1 else given  # whole feeds, one behind the other
    for axis, declared in enumerate(port.shape or ()):
        if isinstance(declared, int):
            sizes.append(declared)
            continue
        made_up = batch if axis == 0 else given[axis] if axis < len(given) else next(fresh)
        sizes.append(made_up if declared is None else names.setdefault(declared, made_up))
    return tuple(sizes)


def other_settings(model: ModelProto, ports: Sequence[Port], first: Mapping[str, Shape]) -> Iterator[Observation]:
    """The model at a larger and at a smaller setting of its dynamic sizes, where it has any and runs at it."""
    if not any(port.is_dynamic for port in ports):
        return
    for step in (1, -1):
        for only in (None, 0):
            try:
                yield observe(model, ports, moved(ports, first, step, only))
                break
            except Exception:  # these sizes do not suit the model; the next may
                continue


def moved(ports: Sequence[Port], first: Mapping[str, Shape], step: int, only: int | None) -> dict[str, Shape]:
    """The input shapes with every dynamic size (on one axis only, if given) changed by `step`."""
    found = {}
    for port in ports:
        declared = enumerate(zip(port.shape or (), first[port.name], strict=True))
        found[port.name] = tuple(
            size if isinstance(said, int) or only not in (None, axis) else max(1, size + step)
            for axis, (said, size) in declared
        )
    return found


def observe(
    model: ModelProto,
    ports: Sequence[Port],
    input_shapes: Mapping[str, Shape],
    given: Mapping[str, np.ndarray] | None = None,
) -> Observation:
    """
    Run the structure once, and each body of control flow by itself on what the node that holds it gets.

    Inputs are zeros unless they are `given`. Raises what ONNX Runtime raises when the sizes do not suit the model.
    """
    structure = without_weights(model)
    computed = [name for node in structure.graph.node for name in node.output if name]
    del structure.graph.output[:]
    structure.graph.output.extend(ValueInfoProto(name=name) for name in computed)
    del structure.graph.value_info[:]
    kinds = {output.name: output.type for output in session_for(structure, optimized=False).get_outputs()}

    tensors = [name for name in computed if kinds[name].startswith("tensor(")]
    countable = [name for name in tensors if kinds[name] in COUNTABLE]
    del structure.graph.output[:]
    for number, name in enumerate(tensors):
        measured = name
        if ELEMENT_TYPES.get(kinds[name]) not in NUMPY_TYPES | {
            TensorProto.STRING
        }:  # ONNX Runtime cannot measure all of them
            measured = f"onnxprune.floats.{number}"
            structure.graph.node.append(helper.make_node("Cast", [name], [measured], to=TensorProto.FLOAT))
        structure.graph.node.append(helper.make_node("Shape", [measured], [f"onnxprune.shape.{number}"]))
        structure.graph.output.append(ValueInfoProto(name=f"onnxprune.shape.{number}"))
    structure.graph.output.extend(ValueInfoProto(name=name) for name in countable)

    feeds = {port.name: np.zeros(input_shapes[port.name], port.dtype) for port in ports} | dict(given or {})
    found = session_for(structure, optimized=False, threads=1, keep_memory=False).run(None, feeds)
    shapes = {name: tuple(int(size) for size in shape) for name, shape in zip(tensors, found, strict=False)}
    shapes |= {port.name: tuple(input_shapes[port.name]) for port in ports}
    numbers = zip(countable, found[len(tensors) :], strict=True)
    values = {name: value for name, value in numbers if value.size <= VALUE_ELEMENTS}
    element_types = {name: ELEMENT_TYPES[kinds[name]] for name in tensors if kinds[name] in ELEMENT_TYPES}
    element_types |= {port.name: port.element_type for port in ports}
    seen = Observation(dict(input_shapes), shapes, values | dict(given or {}), element_types)
    for node in inventory(model.graph).nodes[: len(model.graph.node)]:
        for passing in passings(node):
            seen = seen.with_all_of(observe_body(model, node, passing, seen))
    return seen


def observe_body(model: ModelProto, node: Node, passing: Passing, outside: Observation) -> Observation:
    """What is seen of a body's tensors in its first run; nothing where it does not run."""
    body: GraphProto = node.attributes[passing.attribute]
    constants = constants_of(model.graph, "")
    read = sorted(outer_names(body))
    fed = {name: outside.sample(name) for name in read if name in outside.shapes and name not in constants}
    for port, entry in zip(body.input, passing.entries, strict=False):
        fed[port.name] = first_value(entry, node, outside, constants)
    alone = ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    alone.graph.CopyFrom(body)
    del alone.graph.input[:], alone.graph.value_info[:]
    alone.graph.initializer.extend(named(constants[name].tensor, name) for name in read if name in constants)
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in fed.items()}
    alone.graph.input.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in types.items())
    ports = [Port(name, kind, fed[name].shape) for name, kind in types.items()]
    shapes = {name: array.shape for name, array in fed.items()}
    counts = {name: array for name, array in fed.items() if array.dtype.kind in "ib"}
    try:
        return observe(alone, ports, shapes, counts)
    except Exception:  # ONNX Runtime raises many kinds; what is not seen of the body is left alone
        return Observation({}, {}, {}, {})


def first_value(entry: Entry, node: Node, outside: Observation, constants: Mapping[str, Constant]) -> np.ndarray:
    """What a body's input holds in the first run."""
    if entry.source is None:
        return np.array(entry.value)
    name = node.inputs[entry.source]
    whole = constants[name].array() if name in constants else outside.sample(name)
    return whole if entry.along is None else np.take(whole, 0, entry.along)


def named(tensor: TensorProto, name: str) -> TensorProto:
    """The tensor under this name."""
    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


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
    if dtype.isbuiltin == 1:
        zero = numpy_helper.from_array(np.zeros(1, dtype))
        return [*nodes, helper.make_node("ConstantOfShape", [dims], [name], value=zero)]
    floats = f"{dims}.floats"
    nodes.append(helper.make_node("ConstantOfShape", [dims], [floats]))
    return [*nodes, helper.make_node("Cast", [floats], [name], to=tensor.data_type)]
