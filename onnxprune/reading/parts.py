"""
Models too large to be held at once, run part by part.

The nodes are cut, in order, into parts whose weights fit a budget. Each part is a small model with its own weights,
which are read or made when its turn comes and dropped behind it; the tensors between parts stay. What is computed from
constants alone is computed in each part that reads it. The outputs are those of a run of the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.reading.graph import ELEMENT_TYPES, FLOAT_TYPES, PRECISE_TYPES, constant_tensor, read_by
from onnxprune.reading.numbers import byte_size, holding, is_elsewhere, numbers

PART_BYTES = 2**28
"""What the weights of a part take when it runs; a node whose weights alone take more is a part of its own."""

FED_ELEMENTS = 4096
"""Float weights of more elements are inputs of their part."""

FEEDS_AT_ONCE = 8
"""Runs that go through each part together, so that its weights are read once for all of them."""

Live = dict[str, ort.OrtValue]
"""Tensors between parts."""


@dataclass(frozen=True, slots=True)
class Ported:
    """An input or output, as sessions of ONNX Runtime describe them."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Part:
    """Nodes that run together, the constants that they read, and what others need of what they make."""

    nodes: tuple[NodeProto, ...]
    constants: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class PartedSession:
    """What callers ask of a session of ONNX Runtime, for a model that is run part by part."""

    def __init__(self, model: ModelProto, options: Callable[[], ort.SessionOptions], providers: Sequence[str]) -> None:
        self._model, self._options, self._providers = model, options, list(providers)
        self._constants = constants_by_name(model)
        self._parts = tuple(parts_of(model, self._constants))

    def get_inputs(self) -> list[Ported]:
        """Those that have to be fed."""
        return [ported(port) for port in self._model.graph.input if port.name not in self._constants]

    def get_outputs(self) -> list[Ported]:
        """The outputs of the model."""
        return [ported(port) for port in self._model.graph.output]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names, or all, for one feed."""
        return next(self.run_each(names, [feeds]))

    def run_each(
        self, names: Sequence[str] | None, feeds: Iterable[Mapping[str, np.ndarray]]
    ) -> Iterator[list[np.ndarray]]:
        """The outputs for each feed; several feeds go through each part together."""
        wanted = [output.name for output in self._model.graph.output] if names is None else list(names)
        waiting = iter(feeds)
        while together := list(itertools.islice(waiting, FEEDS_AT_ONCE)):
            lives = [live_values(feed) for feed in together]
            self._run_parts(lives)
            for live in lives:
                yield [live[name].numpy() if name in live else numbers(self._constants[name]) for name in wanted]

    def _run_parts(self, lives: list[Live]) -> None:
        """Bring every tensor that is wanted in the end into `lives`."""
        last = {name: number for number, part in enumerate(self._parts) for name in part.inputs}
        outputs = {output.name for output in self._model.graph.output}
        for number, part in enumerate(self._parts):
            weights = {name: self._constants[name] for name in part.constants if is_fed(self._constants[name])}
            session = self._session(part, weights, lives[0])
            fed = {name: value_of(numbers(tensor), tensor.data_type) for name, tensor in weights.items()}
            for live in lives:
                found = session.run_with_ort_values(part.outputs, fed | {name: live[name] for name in part.inputs})
                live.update(zip(part.outputs, found, strict=True))
                for name in part.inputs:
                    if last[name] == number and name not in outputs:
                        del live[name]
            del session, fed  # before the next part has its weights

    def _session(self, part: Part, weights: Mapping[str, TensorProto], live: Live) -> ort.InferenceSession:
        """A session for one part, which is fed with these weights and holds the others."""
        model = ModelProto(ir_version=max(self._model.ir_version, 4), opset_import=self._model.opset_import)
        model.functions.extend(self._model.functions)
        model.graph.name = "part"
        model.graph.node.extend(part.nodes)
        model.graph.input.extend(typed(name, live[name].data_type()) for name in part.inputs)
        for name, tensor in weights.items():
            model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        model.graph.output.extend(ValueInfoProto(name=name) for name in part.outputs)
        for name in part.constants:
            if name not in weights:
                model.graph.initializer.append(holding(self._constants[name]))
                model.graph.initializer[-1].name = name
        options = self._options()
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        return ort.InferenceSession(model.SerializeToString(), options, providers=self._providers)


def live_values(feed: Mapping[str, np.ndarray]) -> Live:
    """The inputs as ONNX Runtime holds tensors."""
    return {name: value_of(array) for name, array in feed.items()}


def constants_by_name(model: ModelProto) -> dict[str, TensorProto]:
    """Initializers, and what Constant nodes hold in place of numbers that are elsewhere."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        held = constant_tensor(node)
        if held is not None and is_elsewhere(held):
            found[node.output[0]] = held
    return found


def parts_of(model: ModelProto, constants: Mapping[str, TensorProto]) -> Iterator[Part]:
    """The parts, in order."""
    nodes = [node for node in model.graph.node if not constants.keys() & set(node.output)]
    outputs = {port.name for port in model.graph.output}
    fed = {port.name for port in model.graph.input} - constants.keys()
    fixed = fixed_nodes(nodes, fed, outputs)
    groups = tuple(groups_of(nodes, constants, fixed))
    needed = [set(itertools.chain(*(read_by(node) for node in group))) for group in groups]
    carried = set(fed)
    for number, group in enumerate(groups):
        made = {name for node in group for name in node.output if name and id(node) not in fixed}
        later = outputs.union(*needed[number + 1 :])
        if made & later:
            yield Part(
                nodes=group,
                constants=tuple(sorted(needed[number] & constants.keys())),
                inputs=tuple(sorted(needed[number] & carried)),
                outputs=tuple(sorted(made & later)),
            )
        carried |= made


def fixed_nodes(nodes: Sequence[NodeProto], fed: set[str], outputs: set[str]) -> frozenset[int]:
    """Identities of the nodes that compute from constants alone, and nothing that the model gives out."""
    moving, found = set(fed), set()
    for node in nodes:
        has_source = bool(node.input) or constant_tensor(node) is not None
        if has_source and moving.isdisjoint(read_by(node)) and outputs.isdisjoint(node.output):
            found.add(id(node))
        else:
            moving.update(node.output)
    return frozenset(found)


def groups_of(
    nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto], fixed: frozenset[int]
) -> Iterator[tuple[NodeProto, ...]]:
    """Consecutive nodes whose weights fit the budget, each behind the nodes of constants alone that it needs."""
    makers = {name: node for node in nodes if id(node) in fixed for name in node.output if name}
    group: dict[int, NodeProto] = {}
    weights: set[str] = set()
    for node in nodes:
        if id(node) in fixed:
            continue
        needed = behind_makers(node, makers)
        read = {name for one in needed.values() for name in read_by(one) if name in constants}
        size = sum(running_bytes(constants[name]) for name in weights | read)
        if group and read - weights and size > PART_BYTES:
            yield tuple(group.values())
            group, weights = {}, set()
        group |= needed
        weights |= read
    yield tuple(group.values())


def behind_makers(node: NodeProto, makers: Mapping[str, NodeProto]) -> dict[int, NodeProto]:
    """The node behind those of these makers that it needs, by identity."""
    found: dict[int, NodeProto] = {}
    for name in read_by(node):
        if name in makers:
            found |= behind_makers(makers[name], makers)
    return {**found, id(node): node}


def running_bytes(tensor: TensorProto) -> int:
    """What a weight takes when it runs: numbers that the processor does not compute with have a copy in float32."""
    size = int(np.prod(tensor.dims, dtype=np.int64))
    return byte_size(tensor) + (4 * size if tensor.data_type in FLOAT_TYPES - PRECISE_TYPES or size > 2**20 else 0)


def is_fed(tensor: TensorProto) -> bool:
    """Is the weight fed to its part, so that ONNX Runtime takes it where it lies and makes no copies that stay?"""
    return int(np.prod(tensor.dims, dtype=np.int64)) > FED_ELEMENTS and tensor.data_type in FLOAT_TYPES


def value_of(array: np.ndarray, element_type: int = 0) -> ort.OrtValue:
    """The numbers as ONNX Runtime takes them, where they lie; types that numpy does not know need to be named."""
    if array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))
    plain = np.asarray(array, order="C").view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(plain, element_type)


def typed(name: str, kind: str) -> ValueInfoProto:
    """An input of this type, as ONNX Runtime spells it."""
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[kind], None)


def ported(port: ValueInfoProto) -> Ported:
    """The port as ONNX Runtime describes it."""
    numbers_to_names = {number: name for name, number in ELEMENT_TYPES.items()}
    return Ported(port.name, numbers_to_names.get(port.type.tensor_type.elem_type, ""))


def run_each(
    session: ort.InferenceSession | PartedSession,
    names: Sequence[str] | None,
    feeds: Iterable[Mapping[str, np.ndarray]],
) -> Iterator[list[np.ndarray]]:
    """The outputs for each feed, one after another."""
    if isinstance(session, PartedSession):
        yield from session.run_each(names, feeds)
        return
    for feed in feeds:
        yield session.run(names, dict(feed))
