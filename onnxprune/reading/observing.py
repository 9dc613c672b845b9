"""Concrete shapes, observed: the model's structure is run once with zeros in place of its weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.errors import ModelError
from onnxprune.reading.bodies import Entry, Passing, inventory, passings
from onnxprune.reading.graph import (
    ELEMENT_TYPES,
    NUMPY_TYPES,
    Constant,
    Node,
    Port,
    Shape,
    constant_tensor,
    constants_of,
    outer_names,
)
from onnxprune.reading.numbers import byte_size, fits_whole, held_by, holding, is_elsewhere, whole
from onnxprune.reading.parts import PartedSession, value_of

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


MEASURED_TYPES = NUMPY_TYPES | {TensorProto.STRING}
"""Those whose tensors ONNX Runtime can always measure; others are cast first."""

BATCH = 2
"""The size of a dynamic batch that is tried first: a model that runs at it takes any."""

FIXED_BATCHES = (4, 8, 16, 32, 64, 3, 5, 6, 10, 12)
"""Those that are tried in the end, for a batch that is dynamic by name only."""

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
        dtype: Any = helper.tensor_dtype_to_np_dtype(self.element_types[name])
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
Session: TypeAlias = ort.InferenceSession | PartedSession


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

    A `provider` other than the CPU's is asked first, and the CPU's runs what it cannot. A model that is too large to be
    one message is run part by part.
    """
    options = partial(session_options, optimized=optimized, threads=threads, keep_memory=keep_memory)
    providers = list(dict.fromkeys((provider, CPU)))
    try:
        if isinstance(model, ModelProto):
            if not fits_whole(model):
                return PartedSession(model, options, providers)
            model = whole(model).SerializeToString()
        return ort.InferenceSession(model, options(), providers=providers)
    except Exception as failure:  # ONNX Runtime raises many kinds
        first = str(failure).splitlines()[0]
        raise ModelError(
            f"ONNX Runtime does not take the model: {first} Check that it loads in ONNX Runtime by itself."
        ) from None


def session_options(*, optimized: bool, threads: int, keep_memory: bool) -> ort.SessionOptions:
    """Options as `session_for` takes them."""
    options = ort.SessionOptions()
    if not keep_memory:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry(*IN_FLOATS)
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


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
    for batch, others in itertools.product((BATCH, 1), (primes, (8,), (64,), (224,), (32,), (1,), (128,), (640,))):
        names: dict[str, int] = {}
        fresh = itertools.cycle(others)
        yield {port.name: filled(port, given.get(port.name, ()), batch, names, fresh) for port in ports}
    yield from itertools.islice(each_its_own(ports, given), MOST_TRIED)
    for batch, others in itertools.product(FIXED_BATCHES, (primes, (224,))):
        names, fresh = {}, itertools.cycle(others)
        yield {port.name: filled(port, given.get(port.name, ()), batch, names, fresh) for port in ports}


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
    structure, weights = without_weights(model)
    computed = [name for node in structure.graph.node for name in node.output if name]
    del structure.graph.output[:]
    structure.graph.output.extend(ValueInfoProto(name=name) for name in computed)
    del structure.graph.value_info[:]
    kinds = {output.name: output.type for output in whole_session(structure).get_outputs()}

    tensors = [name for name in computed if kinds[name].startswith("tensor(")]
    countable = [name for name in tensors if kinds[name] in COUNTABLE]
    del structure.graph.output[:]
    for number, name in enumerate(tensors):
        measured = name
        if ELEMENT_TYPES.get(kinds[name]) not in MEASURED_TYPES:
            measured = f"onnxprune.floats.{number}"
            structure.graph.node.append(helper.make_node("Cast", [name], [measured], to=TensorProto.FLOAT))
        structure.graph.node.append(helper.make_node("Shape", [measured], [f"onnxprune.shape.{number}"]))
        structure.graph.output.append(ValueInfoProto(name=f"onnxprune.shape.{number}"))
    structure.graph.output.extend(ValueInfoProto(name=name) for name in countable)

    known = given or {}
    inputs = {port.name: known.get(port.name, np.zeros(input_shapes[port.name], port.dtype)) for port in ports}
    feeds: dict[str, Any] = {port.name: inputs[port.name] for port in ports} | zeros(weights)
    for port in ports:
        if port.dtype.kind != "O":  # words come as they are
            feeds[port.name] = value_of(inputs[port.name], port.element_type)
    session = whole_session(structure, keep_memory=False)
    found = session.run([output.name for output in structure.graph.output], feeds)
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
    constants = constants_of(model.graph)
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


def whole_session(structure: ModelProto, *, keep_memory: bool = True) -> ort.InferenceSession:
    """A session of a graph without weights, as it stands."""
    options = session_options(optimized=False, threads=1, keep_memory=keep_memory)
    return ort.InferenceSession(structure.SerializeToString(), options, providers=[CPU])


def without_weights(model: ModelProto) -> tuple[ModelProto, dict[str, TensorProto]]:
    """The same graph, each large weight an input, small ones as they are; and what the large ones are."""
    bare = ModelProto(ir_version=max(model.ir_version, 4), opset_import=model.opset_import, functions=model.functions)
    graph = bare.graph
    graph.name = model.graph.name or "structure"
    weights = {tensor.name: tensor for tensor in model.graph.initializer if is_large(tensor)}
    small = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    known = weights.keys() | {tensor.name for tensor in small}
    graph.initializer.extend(holding(tensor) for tensor in small)
    graph.sparse_initializer.extend(model.graph.sparse_initializer)
    graph.input.extend(port for port in model.graph.input if port.name not in known)
    for node in model.graph.node:
        held = constant_tensor(node)
        if held is not None and is_large(held):
            weights[node.output[0]] = held
        else:
            graph.node.append(with_numbers(node))
    for name, tensor in weights.items():
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return bare, weights


def zeros(weights: Mapping[str, TensorProto]) -> dict[str, ort.OrtValue]:
    """
    Something in the shape of each weight that takes no memory as long as it is only read.

    For types that numpy knows these are zeros, all in one piece of memory; else whatever lies there.
    """
    known = {name: tensor for name, tensor in weights.items() if tensor.data_type in NUMPY_TYPES}
    nothing = np.zeros(max(map(byte_size, known.values()), default=0), np.uint8)
    found = {}
    for name, tensor in weights.items():
        shape = tuple(tensor.dims)
        if name in known:
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            found[name] = value_of(nothing[: byte_size(tensor)].view(dtype).reshape(shape))
        else:
            found[name] = ort.OrtValue.ortvalue_from_shape_and_type(shape, tensor.data_type)
    return found


def with_numbers(node: NodeProto) -> NodeProto:
    """The node with the numbers of the tensors that it holds; itself if it has them."""
    if not any(is_elsewhere(tensor) for tensor in held_by(node)):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    for tensor in held_by(copy):
        tensor.CopyFrom(holding(tensor))
    return copy


def is_large(tensor: TensorProto) -> bool:
    """Is this a weight whose numbers cannot matter to any shape?"""
    index_types = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.STRING)
    return math.prod(tensor.dims) > KEPT_ELEMENTS and tensor.data_type not in index_types
