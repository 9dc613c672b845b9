"""Stations: each group's cut, written into the lab and ready for probes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.engine.cutting import Across, Cut, Sink, cut_for, leading_to
from onnxprune.probing.engine.lab import Lab
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.running import ran
from onnxprune.probing.engine.sizes import ROWS_A_RUN, bytes_of, demand_of, scale_of, share_of
from onnxprune.probing.engine.splitting import closed_name, gate_name, part_before, part_behind, part_of_sink
from onnxprune.probing.engine.tasks import LABELS, Closing, Probe, Setting, Split, Taking, Task, kept_name
from onnxprune.probing.gates import Gate, channels_at
from onnxprune.probing.loss_graph import target_name
from onnxprune.probing.losses import Loss
from onnxprune.reading.graph import Graph
from onnxprune.reading.observing import session_for
from onnxprune.rules.axes import Dim

KEPT_SHARE = 0.25
"""Part of the memory that may be taken by what comes across cuts."""


@dataclass(frozen=True)
class Key:
    """What a station is for: a group, and probes that bring the constants `free`. `whole` as in `cut_for`."""

    group: str
    free: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True)
class Station:
    """A cut in the lab, whether its probes may share runs, and what part of the model runs for each."""

    split: Split
    shares_runs: bool
    share: float


class Stations:
    """
    Builds stations, and hands out tasks for them.

    `rows_are_free` says that samples do not disturb each other, so that probes may share runs. All stations take the
    samples in the same portions, so that one run of the model gives what comes across all cuts.
    """

    def __init__(
        self, lab: Lab, couplings: Couplings, calibration: Calibration, loss: Loss, means: Means, *, rows_are_free: bool
    ) -> None:
        self._lab, self._means = lab, means
        self._couplings, self._calibration, self._loss = couplings, calibration, loss
        self._rows_are_free = rows_are_free
        self._rows = ROWS_A_RUN
        self._stations: dict[Key, Station] = {}
        self._kept: dict[str, int] = {}
        self._numbers = count()
        self._setting = self._fill()

    def prepare(self, keys: Iterable[Key]) -> None:
        """Build the stations that are not there yet, and run the model once for what comes across their cuts."""
        groups = {key: self._couplings.group(key.group) for key in keys if key not in self._stations}
        cuts = {
            key: cut_for(self._couplings, group.dims, self._loss.outputs, whole=key.whole, free=key.free)
            for key, group in groups.items()
        }
        room = self._means.bytes * (1 - KEPT_SHARE) / self._means.processes
        demands = [demand_of(self._couplings, cut, self._calibration) for cut in cuts.values()]
        rows = min((demand.rows_in(room, len(self._calibration), self._rows) for demand in demands), default=self._rows)
        if rows < self._rows:
            self._rows, self._kept = rows, {}  # what was kept is kept in portions of another size
        self._keep(cuts.values())
        for key, cut in cuts.items():
            self._stations[key] = self._built(key, cut)

    def at(self, key: Key) -> Station:
        """A station that was prepared."""
        return self._stations[key]

    def task(self, key: Key, probes: Sequence[Probe]) -> Task:
        """The probes on all samples, the first of them only to be checked."""
        station = self._stations[key]
        portions = tuple(self._calibration.batches(self._rows))
        kept = {one.name: self._kept[one.name] for one in station.split.across if one.name in self._kept}
        split, checks = replace(station.split, kept=kept), self._loss.user is not None
        fitting = max(1, self._rows // len(self._calibration)) if station.shares_runs else 1
        runs = -(-len(probes) // fitting)
        in_each = -(-len(probes) // runs)  # no run that is nearly empty
        return Task(self._lab.address, self._setting, split, tuple(probes), portions, in_each, checks)

    def _fill(self) -> Setting:
        """Write the samples and what the loss compares with into the lab."""
        arrays = dict(self._calibration.arrays)
        arrays |= {target_name(name): values for name, values in self._loss.targets.items()}
        if self._calibration.labels is not None:
            arrays[LABELS] = self._calibration.labels
        for number, array in enumerate(arrays.values()):
            self._lab.add_array(f"array.{number}", array)
        none = np.arange(0)
        return Setting(
            self._calibration.only(none),
            self._loss.only(none),
            tuple(arrays),
            self._means.threads or 1,
            self._means.provider,
        )

    def _built(self, key: Key, cut: Cut) -> Station:
        couplings, loss = self._couplings, self._loss
        name = f"part.{len(self._stations)}"
        self._lab.add_part(f"{name}.before", part_before(couplings.graph, cut, self._lab.store))
        self._lab.add_part(f"{name}.behind", part_behind(couplings.graph, cut, loss, self._lab.store, key.free))
        dims = couplings.group(key.group).dims
        closed = tuple(closings(cut, dims, couplings))
        split = Split(
            name,
            across=cut.across,
            closings=closed,
            takings=tuple(self._taking(f"{name}.{number}", sink, cut, dims) for number, sink in enumerate(cut.sinks)),
            free=key.free,
        )
        sizes_are_known = as_observed(couplings.graph, self._calibration) or all(
            one.fed is not None or one.per_sample == 1 for one in closed
        )
        shares_runs = self._rows_are_free and cut.shares_runs and sizes_are_known and not key.free and not key.whole
        return Station(split, shares_runs, share_of(couplings, cut.behind))

    def _taking(self, name: str, sink: Sink, cut: Cut, dims: Sequence[Dim]) -> Taking:
        """Write the sink alone and its constant into the lab."""
        graph = self._couplings.graph
        constant = graph.constants[graph.nodes[sink.position].inputs[sink.weight]]
        self._lab.add_part(name, part_of_sink(graph, sink, self._lab.store))
        self._lab.add_array(f"{name}.weight", constant.array())
        batch_axis = next((one.batch_axis for one in cut.across if one.name == sink.output), None)
        return Taking(
            part=name,
            data=sink.gate.tensor,
            axis=sink.gate.axis,
            weight=f"{name}.weight",
            weight_axis=sink.weight_axis,
            output=sink.output,
            batch_axis=batch_axis,
            channels=channels_at(sink.gate.type, dims),
        )

    def _keep(self, cuts: Iterable[Cut]) -> None:
        """Write what comes across the cuts into the lab, if it is not too much; else each task computes it again."""
        graph, setting = self._couplings.graph, self._setting
        names = {one.name for cut in cuts for one in cut.across} & graph.makers.keys() - self._kept.keys()
        size = sum(bytes_of(name, graph) for name in names) * scale_of(graph, self._calibration)
        if not names or size * len(self._calibration) > self._means.bytes * KEPT_SHARE:
            return
        wanted = tuple(sorted(names))
        making = Cut(tuple(sorted(leading_to(graph, names))), (), tuple(Across(name, None, True) for name in wanted))
        self._lab.add_part("all.before", part_before(graph, making, self._lab.store))
        before = session_for(
            str(self._lab.path / "all.before.onnx"), threads=setting.threads, provider=setting.provider
        )
        self._kept |= {name: next(self._numbers) for name in wanted}
        for number, samples in enumerate(self._calibration.batches(self._rows)):
            feed = self._calibration.at(self._calibration.filled(samples))
            made = ran(before, wanted, {port.name: feed[port.name] for port in before.get_inputs()})
            for name, value in zip(wanted, made, strict=True):
                self._lab.add_array(kept_name(self._kept[name], number), value)


def as_observed(graph: Graph, calibration: Calibration) -> bool:
    """Have the samples the sizes at which the model ran when it was read?"""
    return all(array.shape[1:] == graph.input_shapes[name][1:] for name, array in calibration.arrays.items())


def closings(cut: Cut, dims: Sequence[Dim], couplings: Couplings) -> list[Closing]:
    """How each gate of the cut is closed."""
    fed = [closing(closed_name(number), gate, gate.tensor, dims, couplings) for number, gate in enumerate(cut.fed)]
    inside = [closing(gate_name(number), gate, None, dims, couplings) for number, gate in enumerate(cut.inside)]
    return [*fed, *inside]


def closing(name: str, gate: Gate, fed: str | None, dims: Sequence[Dim], couplings: Couplings) -> Closing:
    """Which channels of the group stand where on the gate's axis."""
    samples = next((dim.size for dim in couplings.batch), 1)
    positions = 1 if gate.batch_axis is None else couplings.graph.shapes[gate.tensor][gate.batch_axis] // samples
    channels = channels_at(gate.type, dims)
    return Closing(name, fed, gate.axis, gate.rank, gate.batch_axis, positions, channels, gate.zeros or (0.0,))
