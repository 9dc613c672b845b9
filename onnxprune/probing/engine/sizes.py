"""How much memory and time the parts of a cut take, from the shapes of their tensors and the rules' costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.engine.cutting import Cut, cut_for
from onnxprune.reading.graph import ELEMENT_BYTES, Graph
from onnxprune.rules.axes import width
from onnxprune.rules.facts import Macs

ROWS_A_RUN = 64
"""Probes times samples in one run: more buys nothing on a CPU."""

PROCESS_BYTES = 250 * 2**20
"""What a Python process with ONNX Runtime takes before it does anything."""

SLACK = 1.5
"""ONNX Runtime plans its memory less tightly than a list of living tensors."""

NODE_SHARE = 0.1
"""Part of a run's time that goes with the number of nodes, not with their MACs."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Bytes that a worker needs for a cut: for its weights, for a row of a run, and for a sample before the cut."""

    weights: float
    row: float
    sample: float

    def at(self, rows: int, samples: int) -> float:
        """Bytes of a worker whose runs have up to that many rows, when there are that many samples."""
        return PROCESS_BYTES + 2 * self.weights + max(rows * self.row, min(rows, samples) * self.sample)

    def rows_in(self, room: float, samples: int, most: int = ROWS_A_RUN) -> int:
        """The most rows of a run that fit into so many bytes, up to `most`; one at least."""
        return next((rows for rows in range(most, 1, -1) if self.at(rows, samples) <= room), 1)


def demand_of(couplings: Couplings, cut: Cut, calibration: Calibration) -> Demand:
    """What a worker needs for this cut."""
    graph = couplings.graph
    scale = SLACK * scale_of(graph, calibration)
    kept = [one.name for one in cut.across]
    changed = (*(gate.tensor for gate in cut.fed), *(sink.output for sink in cut.sinks))
    copies = sum(bytes_of(name, graph) for name in (*kept, *changed))
    weights = {name for position in (*cut.before, *cut.behind) for name in graph.nodes[position].reads}
    behind, before = 2 * copies + most_alive(graph, cut.behind), copies + most_alive(graph, cut.before)
    again = any(one.counts_rows and one.name in graph.makers for one in cut.across)
    return Demand(
        weights=sum(bytes_of(name, graph) for name in weights & graph.constants.keys()),
        row=scale * (max(behind, before) if again else behind),
        sample=scale * before,
    )


def rows_of_the_model(couplings: Couplings, calibration: Calibration, room: float) -> int:
    """How many samples the whole model may run on at once to stay within so many bytes."""
    whole = cut_for(couplings, (), calibration.outputs, whole=True)
    return demand_of(couplings, whole, calibration).rows_in(room, len(calibration))


def most_alive(graph: Graph, positions: Sequence[int]) -> float:
    """The most bytes of computed tensors that are needed at any one time."""
    last: dict[str, int] = {}
    for position in positions:
        node = graph.nodes[position]
        last |= dict.fromkeys((*node.reads, *node.outputs), position)
    alive, most = 0.0, 0.0
    for position in positions:
        node = graph.nodes[position]
        alive += sum(bytes_of(name, graph) for name in node.outputs)
        most = max(most, alive)
        done = {name for name in (*node.reads, *node.outputs) if last[name] == position}
        alive -= sum(bytes_of(name, graph) for name in done if name in graph.makers and name not in graph.constants)
    return max(most, 0.0)


def bytes_of(name: str, graph: Graph) -> float:
    """The tensor's bytes as observed."""
    constant = graph.constants.get(name)
    element = constant.tensor.data_type if constant is not None else graph.element_types.get(name, 0)
    return ELEMENT_BYTES.get(element, 4) * math.prod(graph.shapes.get(name, ()))


def scale_of(graph: Graph, calibration: Calibration) -> float:
    """From bytes as observed to bytes of one sample: the samples may be larger than what was observed, and fewer."""
    rows = max((shape[0] for shape in graph.input_shapes.values()), default=1) if graph.has_batch else 1
    observed = sum(math.prod(shape) for shape in graph.input_shapes.values()) / rows
    found = sum(math.prod(array.shape[1:]) for array in calibration.arrays.values())
    return max(1.0, found / max(observed, 1)) / rows


def share_of(couplings: Couplings, positions: Iterable[int]) -> float:
    """Which part of a run of the whole model these nodes take: by their MACs, and a little by their number."""
    macs = macs_by_node(couplings)
    chosen = set(positions)
    by_macs = sum(macs.get(position, 0.0) for position in chosen) / max(sum(macs.values()), 1.0)
    by_number = len(chosen) / len(couplings.graph.main)
    return (1 - NODE_SHARE) * by_macs + NODE_SHARE * by_number


def macs_by_node(couplings: Couplings) -> Mapping[int, float]:
    """Multiply-accumulates of each node of the main graph that has any, in its bodies too, as observed."""
    found: dict[int, float] = {}
    for op, fact in facts_where(couplings.typing, Macs):
        macs = float(math.prod(width(axis, {}) for axis in fact.factors))
        position = couplings.graph.in_main(op.node.position)
        found[position] = found.get(position, 0.0) + macs
    return found
