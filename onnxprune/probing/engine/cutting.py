"""
Where the graph is cut for a group: a probe runs only what lies behind its gates.

    x ──► Conv ──► Relu ──┃──► Conv ──► Relu ──► Conv ──► loss
          runs once       ┃    runs for every probe

What comes across the cut is kept. A gate on a tensor that comes across needs no node: the kept numbers are closed
before they are fed. Only gates behind the cut, as in a residual stream that is read again and again, multiply in the
graph.

A sink that is affine in its closed tensor need not run again either: the closed channels' own terms are taken off its
kept output, which costs as much as these few channels do. Then the cut lies behind the sink.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from onnx import TensorProto

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Use
from onnxprune.probing.gates import Gate, batch_axis, gates_of
from onnxprune.reading.graph import NUMPY_TYPES, PRECISE_TYPES, Graph
from onnxprune.rules.axes import Axis, Dim, leaves
from onnxprune.rules.facts import Contracted, Stores

INTEGERS = frozenset({int(TensorProto.INT8), int(TensorProto.INT16), int(TensorProto.INT32), int(TensorProto.INT64)})
"""Element types that may count."""


@dataclass(frozen=True, slots=True)
class Across:
    """A tensor that comes across the cut: where its samples lie, or whether it is one for all samples."""

    name: str
    batch_axis: int | None
    shared: bool
    integer: bool = False

    @property
    def counts_rows(self) -> bool:
        """May it hold the number of rows of a run, so that it must be computed for all of them, not repeated?"""
        return self.batch_axis is None or self.integer


@dataclass(frozen=True, slots=True)
class Sink:
    """
    An affine sink: the node at `position` reads the gate's tensor as input `data`, and sums it with the constant that
    is its input `weight` over that constant's `weight_axis`.
    """

    gate: Gate
    position: int
    data: int
    weight: int
    weight_axis: int
    output: str


@dataclass(frozen=True)
class Cut:
    """
    The graph in two parts.

    `before` and `behind` are positions of nodes, ascending: of those that make what comes across, and of those that run
    for each probe. `fed` are the gates that are closed in what is fed; `inside` those that multiply behind the cut;
    `sinks` those of which closed channels are taken off.
    """

    before: tuple[int, ...]
    behind: tuple[int, ...]
    across: tuple[Across, ...]
    fed: tuple[Gate, ...] = ()
    inside: tuple[Gate, ...] = ()
    sinks: tuple[Sink, ...] = ()

    @property
    def shares_runs(self) -> bool:
        """May several probes share a run, each with samples of its own?"""
        changed = {sink.output for sink in self.sinks}
        return all(
            one.batch_axis is not None or (one.shared and one.name not in changed) for one in self.across
        ) and all(gate.batch_axis is not None for gate in (*self.fed, *self.inside))


def cut_for(
    couplings: Couplings,
    dims: Iterable[Dim],
    outputs: Iterable[str],
    *,
    whole: bool = False,
    free: Collection[str] = (),
) -> Cut:
    """
    The cut behind which the fewest nodes run for probes of these Dims; `outputs` are the tensors the loss reads.

    The constants in `free` are the probes' own: all sinks run again, and what reads them. A `whole` cut keeps
    nothing but the model's inputs, and has all gates in the graph: slow, and plain enough to check the others against.
    """
    graph, gates, wanted = couplings.graph, gates_of(couplings, dims), frozenset(outputs)
    if whole:
        behind, names = run_again(graph, wanted, frozenset(), frozenset(graph.input_shapes))
        return cut_of(couplings, behind, names, inside=gates)
    kept = keepable(couplings)
    sinks = {} if free else affine_sinks(couplings, gates, kept)
    behind, names = run_again(graph, wanted, moved_by(graph, gates, sinks, free), kept)
    needed = [sink for alike in sinks.values() for sink in alike if sink.output in names]
    names |= {sink.gate.tensor for sink in needed}
    fed = {gate.tensor: gate for gate in reversed(gates) if gate.tensor in names and gate not in sinks}
    inside = [gate for gate in gates if gate not in sinks and fed.get(gate.tensor) is not gate]
    return cut_of(couplings, behind, names, fed.values(), inside, needed)


def cut_of(
    couplings: Couplings,
    behind: Set[int],
    names: Set[str],
    fed: Iterable[Gate] = (),
    inside: Iterable[Gate] = (),
    sinks: Iterable[Sink] = (),
) -> Cut:
    """The cut with its nodes in order."""
    return Cut(
        before=tuple(sorted(leading_to(couplings.graph, names))),
        behind=tuple(sorted(behind)),
        across=tuple(across(name, couplings) for name in sorted(names)),
        fed=tuple(fed),
        inside=tuple(inside),
        sinks=tuple(sinks),
    )


def keepable(couplings: Couplings) -> frozenset[str]:
    """
    Inputs and computed tensors that can be kept and fed again.

    What follows from constants and shapes alone is computed again: it costs little, and may count the rows of a run.
    What bodies compute stays in them.
    """
    types = couplings.graph.element_types
    inner = couplings.typing.knowable | couplings.graph.scopes.keys()
    return frozenset(name for name in types if types[name] in NUMPY_TYPES and name not in inner)


def affine_sinks(couplings: Couplings, gates: Sequence[Gate], kept: Set[str]) -> dict[Gate, list[Sink]]:
    """The gates all of whose sinks are affine and lie on the cut, with these sinks."""
    graph = couplings.graph
    found: dict[Gate, list[Sink]] = {}
    for gate in gates:
        sinks = [affine_sink(couplings, gate, use) for use in gate.uses]
        if all(sink is not None and sink.output in kept for sink in sinks) and gate.tensor in kept:
            found[gate] = [sink for sink in sinks if sink is not None]
    while True:  # a sink that is reached from another gate runs again, and with it all sinks of its own gate
        moved = moved_by(graph, gates, found)
        again = [gate for gate, sinks in found.items() if any(sink.position in moved for sink in sinks)]
        if not again:
            return found
        for gate in again:
            del found[gate]


def moved_by(
    graph: Graph, gates: Iterable[Gate], sinks: Mapping[Gate, Sequence[Sink]], free: Iterable[str] = ()
) -> set[int]:
    """
    The nodes that compute something else when gates close, but for the sinks of which closed channels are taken, or
    when the constants in `free` change.
    """
    closed = {graph.in_main(position) for gate in gates if gate not in sinks for position, _ in gate.uses}
    changed = {sink.output for alike in sinks.values() for sink in alike} | set(free)
    return reached_from(graph, closed | {node.position for node in graph.main if not changed.isdisjoint(node.reads)})


def affine_sink(couplings: Couplings, gate: Gate, use: Use) -> Sink | None:
    """The sink at this use, if it is affine and its other operand a constant that is cut along with the tensor."""
    typing, (position, index) = couplings.typing, use
    op, facts = typing.stated[position].op, typing.stated[position].facts
    data = op.inputs[index]
    (fact,) = (
        fact for fact in facts if isinstance(fact, Contracted) and fact.tensor is data and fact.axis == gate.axis
    )
    others = [(number, other) for number, other in enumerate(op.inputs) if other is not None and number != index]
    precise = couplings.graph.element_types.get(gate.tensor) in PRECISE_TYPES
    constant = all(other.name in couplings.graph.constants for _, other in others)
    if not (fact.affine and precise and constant and len(op.results) == 1) or op.node.inside is not None:
        return None
    matching = [
        (number, axis)
        for number, other in others
        if any(other is operand for operand in fact.by)
        for axis, type_ in enumerate(typing.axes(other))
        if type_ == gate.type
    ]
    if len(matching) != 1 or len(places_of(gate.type, couplings, position)) != 2:
        return None
    ((weight, weight_axis),) = matching
    return Sink(gate, position, index, weight, weight_axis, op.node.outputs[0])


def places_of(channels: Axis, couplings: Couplings, position: int) -> list[Axis]:
    """Where any of these channels stand at a node: the types of its tensors' axes, and of the sizes that it stores."""
    typing, dims = couplings.typing, set(leaves(channels))
    op, facts = typing.stated[position].op, typing.stated[position].facts
    axes = [axis for tensor in (*op.tensors, *op.results) for axis in typing.axes(tensor)]
    sizes = [typing.solver.resolve(fact.size) for fact in facts if isinstance(fact, Stores)]
    return [axis for axis in (*axes, *sizes) if not dims.isdisjoint(leaves(axis))]


def reached_from(graph: Graph, starts: Set[int]) -> set[int]:
    """These nodes, and those that read what such a node makes."""
    reached: set[int] = set()
    moved: set[str] = set()
    for node in graph.main:
        if node.position in starts or not moved.isdisjoint(node.reads):
            reached.add(node.position)
            moved.update(name for name in node.outputs if name)
    return reached


def run_again(
    graph: Graph, outputs: frozenset[str], moved: Set[int], kept: frozenset[str]
) -> tuple[set[int], set[str]]:
    """The nodes that must run for every probe, and the tensors that are kept for them."""
    behind: set[int] = set()
    across: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        maker = graph.makers.get(name)
        if is_constant(name, graph) or (maker is not None and maker.position in behind):
            continue
        if maker is None or (name in kept and maker.position not in moved):
            across.add(name)
            continue
        behind.add(maker.position)
        pending.extend(maker.reads)
    return behind, across


def is_constant(name: str, graph: Graph) -> bool:
    """Is the tensor stored in the model? A sparse one is, although it is none of the graph's constants."""
    return name in graph.constants or (name not in graph.makers and name not in graph.input_shapes)


def leading_to(graph: Graph, names: Set[str]) -> set[int]:
    """The nodes that these tensors are computed by."""
    found: set[int] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        maker = graph.makers.get(name)
        if maker is not None and maker.position not in found and not is_constant(name, graph):
            found.add(maker.position)
            pending.extend(maker.reads)
    return found


def across(name: str, couplings: Couplings) -> Across:
    """The tensor, with what its dimension types say of its samples."""
    types = couplings.typing.axes(couplings.typing.tensors[name])
    shared = all(couplings.batch.isdisjoint(leaves(axis)) for axis in types)
    return Across(name, batch_axis(types, couplings.batch), shared, couplings.graph.element_types[name] in INTEGERS)
