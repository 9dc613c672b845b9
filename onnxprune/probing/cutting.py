"""
Where the graph is cut for a group: a probe runs only what lies behind its gates.

    x ──► Conv ──► Relu ──┃──► Conv ──► Relu ──► Conv ──► loss
          runs once       ┃    runs for every probe

What comes across the cut is kept. A gate on a tensor that comes across needs no node: the kept numbers are closed
before they are fed. Only gates behind the cut, as in a residual stream that is read again and again, multiply in the
graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Use
from onnxprune.probing.gates import Gate, batch_axis, gates_of
from onnxprune.reading.graph import NUMPY_TYPES, Graph
from onnxprune.rules.axes import Dim, leaves


@dataclass(frozen=True, slots=True)
class Across:
    """A tensor that comes across the cut: where its samples lie, or whether it is one for all samples."""

    name: str
    batch_axis: int | None
    shared: bool


@dataclass(frozen=True)
class Cut:
    """
    The graph in two parts.

    `before` and `behind` are positions of nodes, ascending: of those that make what comes across, and of those that run
    for each probe. `fed` are the gates that are closed in what is fed; `inside` those that multiply behind the cut.
    """

    before: tuple[int, ...]
    behind: tuple[int, ...]
    across: tuple[Across, ...]
    fed: tuple[Gate, ...]
    inside: tuple[Gate, ...]

    @property
    def shares_runs(self) -> bool:
        """May several probes share a run, each with samples of its own?"""
        gates = (*self.fed, *self.inside)
        return all(one.shared or one.batch_axis is not None for one in self.across) and all(
            gate.batch_axis is not None for gate in gates
        )


def cut_for(couplings: Couplings, dims: Iterable[Dim], outputs: Iterable[str], *, whole: bool = False) -> Cut:
    """
    The cut behind which the fewest nodes run for probes of these Dims; `outputs` are the tensors the loss reads.

    A `whole` cut keeps nothing but the model's inputs, and has all gates in the graph: slow, and plain enough to check
    the others against.
    """
    graph, gates = couplings.graph, gates_of(couplings, dims)
    kept = frozenset(graph.input_shapes) if whole else keepable(couplings)
    moved = () if whole else reached_from(graph, {use for gate in gates for use in gate.uses})
    behind, names = run_again(graph, frozenset(outputs), frozenset(moved), kept)
    fed: dict[str, Gate] = {}
    for gate in () if whole else gates:
        if gate.tensor in names:
            fed.setdefault(gate.tensor, gate)
    return Cut(
        before=tuple(sorted(leading_to(graph, names))),
        behind=tuple(sorted(behind)),
        across=tuple(across(name, couplings) for name in sorted(names)),
        fed=tuple(fed.values()),
        inside=tuple(gate for gate in gates if fed.get(gate.tensor) is not gate),
    )


def keepable(couplings: Couplings) -> frozenset[str]:
    """
    Inputs and computed tensors that can be kept and fed again.

    What follows from constants and shapes alone is computed again: it costs little, and may count the rows of a run.
    """
    types = couplings.graph.element_types
    return frozenset(name for name in types if types[name] in NUMPY_TYPES and name not in couplings.typing.knowable)


def reached_from(graph: Graph, uses: Set[Use]) -> set[int]:
    """The nodes that read at one of these uses, or read what such a node makes."""
    starts = {position for position, _ in uses}
    reached: set[int] = set()
    moved: set[str] = set()
    for node in graph.nodes:
        if node.position in starts or not moved.isdisjoint(node.reads):
            reached.add(node.position)
            moved.update(name for name in node.outputs if name)
    return reached


def run_again(
    graph: Graph, outputs: frozenset[str], moved: frozenset[int], kept: frozenset[str]
) -> tuple[set[int], set[str]]:
    """The nodes that must run for every probe, and the tensors that are kept for them."""
    behind: set[int] = set()
    across: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        maker = graph.makers.get(name)
        if name in graph.constants or (maker is not None and maker.position in behind):
            continue
        if maker is None or (name in kept and maker.position not in moved):
            across.add(name)
            continue
        behind.add(maker.position)
        pending.extend(maker.reads)
    return behind, across


def leading_to(graph: Graph, names: Set[str]) -> set[int]:
    """The nodes that these tensors are computed by."""
    found: set[int] = set()
    pending = list(names)
    while pending:
        maker = graph.makers.get(pending.pop())
        if maker is not None and maker.position not in found:
            found.add(maker.position)
            pending.extend(maker.reads)
    return found


def across(name: str, couplings: Couplings) -> Across:
    """The tensor, with what its dimension types say of its samples."""
    types = couplings.typing.axes(couplings.typing.tensors[name])
    shared = all(couplings.batch.isdisjoint(leaves(axis)) for axis in types)
    return Across(name, batch_axis(types, couplings.batch), shared)
