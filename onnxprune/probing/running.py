"""Run probes in a lab: what a worker process does, and the same in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from onnxprune.probing.calibration import Calibration
from onnxprune.probing.cutting import Across
from onnxprune.probing.lab import KEPT, Room, folder_of
from onnxprune.probing.losses import Loss, target_name, user_losses
from onnxprune.probing.splitting import SINK_DATA, SINK_WEIGHT
from onnxprune.reading.observing import Session, session_for


@dataclass(frozen=True, slots=True)
class Probe:
    """
    One change whose loss is wanted: these channels of the group get the gate `gate` (0: they are removed, 1: nothing
    changes), and constants may get other numbers.
    """

    channels: tuple[int, ...] = ()
    gate: float = 0.0
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


OPEN = Probe()

LABELS = "onnxprune.labels"
"""The array in the lab that holds the labels, for a loss of the user's own."""


@dataclass(frozen=True)
class Closing:
    """
    How a gate is closed for the channels of a group.

    `input` is the input of the part behind: of the gate, or of the whole closed tensor where `fed` names one that
    comes across. `channels` holds, for each dimension of the group, its channel at each position of `axis`, -1 for
    none. `per_sample` are the positions that a sample has on `batch_axis`.
    """

    input: str
    fed: str | None
    axis: int
    rank: int
    batch_axis: int | None
    per_sample: int
    channels: tuple[np.ndarray, ...]

    def values(self, probe: Probe) -> np.ndarray:
        """The gate at every position of the axis."""
        return gate_values(self.channels, probe)


@dataclass(frozen=True)
class Taking:
    """
    How closed channels are taken off a sink's output: `part` is the sink alone in the lab, and `weight` the file of its
    constant, which has the channels of `data` on its `weight_axis`. `batch_axis` is the output's.
    """

    part: str
    data: str
    axis: int
    weight: str
    weight_axis: int
    output: str
    batch_axis: int | None
    channels: tuple[np.ndarray, ...]


def gate_values(channels: Sequence[np.ndarray], probe: Probe) -> np.ndarray:
    """The gate at every position of an axis, from each dimension's channel there."""
    gates = np.ones(len(channels[0]), np.float32)
    if probe.channels:
        for along in channels:
            gates *= np.where(np.isin(along, probe.channels), np.float32(probe.gate), np.float32(1))
    return gates


@dataclass(frozen=True)
class Split:
    """A cut as a worker needs it: the names of its two parts in the lab, and how they are fed."""

    name: str
    across: tuple[Across, ...]
    closings: tuple[Closing, ...]
    takings: tuple[Taking, ...] = ()
    free: tuple[str, ...] = ()
    kept: Mapping[str, int] = field(default_factory=dict)
    """Numbers of the tensors that may lie in the lab for each portion."""


@dataclass(frozen=True)
class Setting:
    """
    What is the same for all probes.

    `samples` and `loss` come with no sample in them: their arrays lie in the lab, in the order of `arrays`.
    """

    samples: Calibration
    loss: Loss
    arrays: tuple[str, ...]
    threads: int
    provider: str


@dataclass(frozen=True)
class Task:
    """
    Probes of one cut on portions of the samples; `probes_a_run` of them share a run.

    The first is there to be checked: it runs on the first portion only, unless `checks` says on all.
    """

    room: Room
    setting: Setting
    split: Split
    probes: tuple[Probe, ...]
    portions: tuple[np.ndarray, ...]
    probes_a_run: int
    checks: bool = False


def run_task(task: Task, contents: Mapping[str, bytes] | None = None) -> np.ndarray | None:
    """
    Losses `[probes, samples]`, float64; NaN where the first probe did not run.

    None when this process has not got the lab: then it wants the same task again, with the lab's contents.
    """
    folder = folder_of(task.room, contents)
    if folder is None:
        return None
    bench = Bench(task, folder)
    return np.concatenate([bench.losses(number) for number in range(len(task.portions))], axis=1)


class Bench:
    """The two parts of a cut, ready to run."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.split, self.setting, self.folder = task, task.split, task.setting, folder
        self.behind = self._session(f"{self.split.name}.behind")
        self.inputs = frozenset(port.name for port in self.behind.get_inputs())
        self.arrays = {
            name: np.load(folder / f"array.{number}.npy", mmap_mode="r")
            for number, name in enumerate(self.setting.arrays)
        }

    def losses(self, portion: int) -> np.ndarray:
        """Losses `[probes, samples]` on a portion of the samples, which is run at once."""
        samples, repeats = self.task.portions[portion], self.task.probes_a_run
        rows = self.setting.samples.filled(samples)
        feed = {name: self._of(rows, self.arrays[name]) for name in self.setting.samples.arrays}
        kept = self._kept(portion, feed)
        fixed = self._repeated(kept, feed, repeats) | self._targets(rows, repeats)
        closing = Closer(self.split, kept, fixed, len(rows), repeats)
        takers = [Taker(taking, kept, len(rows), repeats, self._sink(taking)) for taking in self.split.takings]
        found = np.full((len(self.task.probes), len(samples)), np.nan)
        for start in range(0 if self.task.checks or portion == 0 else 1, len(found), repeats):
            probes = self.task.probes[start : start + repeats]
            with_gates = closing.closed(probes) | {taker.output: taker.taken_off(probes) for taker in takers}
            feeds = {name: value for name, value in with_gates.items() if name in self.inputs}
            outputs = self.behind.run(None, feeds | dict(probes[0].constants))
            found[start : start + len(probes)] = self._split(outputs, probes, samples, len(rows))
            closing.open(probes)
        return found

    def _sink(self, taking: Taking) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """The sink as a function of some positions of its tensor, already gated, and of which they are."""
        alone = self._session(taking.part)
        weight = np.load(self.folder / f"{taking.weight}.npy", mmap_mode="r")

        def run(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
            part = np.take(weight, positions, taking.weight_axis)
            (output,) = alone.run(None, {SINK_DATA: data, SINK_WEIGHT: part})
            return np.asarray(output)

        return run

    def _session(self, part: str) -> Session:
        made = sessions(self.folder, self.split.name)
        if part not in made:
            path = str(self.folder / f"{part}.onnx")
            made[part] = session_for(path, threads=self.setting.threads, provider=self.setting.provider)
        return made[part]

    @property
    def _before(self) -> Session:
        return self._session(f"{self.split.name}.before")

    def _of(self, rows: np.ndarray, array: np.ndarray) -> np.ndarray:
        """The array's rows, or the one sample that is run whole."""
        return np.ascontiguousarray(array[rows[0]] if self.setting.samples.stacked else array[rows])

    def _kept(self, portion: int, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What comes across the cut: from the feed, from the lab, or computed here."""
        found = {one.name: feed[one.name] for one in self.split.across if one.name in feed}
        for one in self.split.across:
            path = self.folder / kept_file(self.split.kept.get(one.name), portion)
            if one.name not in found and path.exists():
                found[one.name] = np.load(path)
        missing = [one.name for one in self.split.across if one.name not in found]
        made = self._before.run(missing, self._needed(feed)) if missing else []
        return found | dict(zip(missing, made, strict=True))

    def _needed(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {port.name: feed[port.name] for port in self._before.get_inputs()}

    def _repeated(
        self, kept: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray], repeats: int
    ) -> dict[str, np.ndarray]:
        """What comes across, for as many samples as share a run."""
        if repeats == 1:
            return dict(kept)
        axes = {one.name: one.batch_axis for one in self.split.across}
        found = {
            name: np.concatenate([value] * repeats, axis=axis)
            for name, value in kept.items()
            if (axis := axes[name]) is not None and value.dtype.kind != "i"
        }
        shared = [name for name in kept if name not in found]
        if shared:  # it may count the rows of a run, as may integers
            rows = {name: np.concatenate([value] * repeats) for name, value in feed.items()}
            made = [name for name in shared if name not in feed]
            found |= dict(zip(made, self._before.run(made, self._needed(rows)), strict=True)) if made else {}
            found |= {name: rows[name] for name in shared if name in feed}
        return found

    def _targets(self, rows: np.ndarray, repeats: int) -> dict[str, np.ndarray]:
        """What the loss compares with, for each row of a run."""
        if self.setting.loss.user is not None:
            return {}
        names = [target_name(name) for name in self.setting.loss.targets]
        targets = {name: self._of(rows, self.arrays[name]) for name in names}
        return {name: np.concatenate([value] * repeats) if repeats > 1 else value for name, value in targets.items()}

    def _split(
        self, outputs: Sequence[np.ndarray], probes: Sequence[Probe], samples: np.ndarray, rows: int
    ) -> np.ndarray:
        """Losses `[probes, samples]` of one run."""
        loss = self.setting.loss
        if loss.user is None:
            return np.asarray(outputs[0]).reshape(-1, rows)[: len(probes), : len(samples)]
        targets = {name: self.arrays[target_name(name)] for name in loss.targets}
        labels = self.arrays.get(LABELS)
        each = [output[None] if loss.stacked else output for output in outputs]
        parts = ([one[n * rows : n * rows + len(samples)] for one in each] for n in range(len(probes)))
        return np.stack([user_losses(loss, targets, part, samples, labels) for part in parts])


class Closer:
    """
    Closes gates in what is fed, and opens them again.

    The tensors that come across are copied once for all probes of a portion; a probe then changes only its channels.
    """

    def __init__(
        self, split: Split, kept: Mapping[str, np.ndarray], fixed: dict[str, np.ndarray], rows: int, repeats: int
    ) -> None:
        self.closings = split.closings
        self.rows, self.repeats = rows, repeats
        self.feeds = dict(fixed)
        self.whole = {}
        for closing in self.closings:
            if closing.fed is not None:
                self.feeds[closing.input] = np.array(fixed[closing.fed])
                self.whole[closing.input] = moved(kept[closing.fed], closing)

    def closed(self, probes: Sequence[Probe]) -> dict[str, np.ndarray]:
        """The feeds with the gates of these probes closed."""
        for closing in self.closings:
            if closing.fed is None:
                self.feeds[closing.input] = self._gate(closing, probes)
        for closing, number, positions, values in self._changes(probes):
            whole, rows = self.whole[closing.input], self._rows(closing, number)
            shape = (1, -1) + (1,) * (whole.ndim - 2)
            factors = values[positions].astype(whole.dtype).reshape(shape)
            moved(self.feeds[closing.input], closing)[rows, positions] = whole[:, positions] * factors
        return self.feeds

    def open(self, probes: Sequence[Probe]) -> None:
        """Put back what these probes closed."""
        for closing, number, positions, _ in self._changes(probes):
            rows = self._rows(closing, number)
            moved(self.feeds[closing.input], closing)[rows, positions] = self.whole[closing.input][:, positions]

    def _changes(self, probes: Sequence[Probe]) -> Iterator[tuple[Closing, int, np.ndarray, np.ndarray]]:
        """For each probe and each tensor that is closed in what is fed: the positions that change, and the gates."""
        for closing in self.closings:
            for number, probe in enumerate(probes if closing.fed is not None else ()):
                values = closing.values(probe)
                yield closing, number, np.flatnonzero(values != 1), values

    def _rows(self, closing: Closing, number: int) -> slice:
        """Where the samples of a run's probe lie on the batch axis."""
        each = self.rows * closing.per_sample
        return slice(None) if self.repeats == 1 else slice(number * each, (number + 1) * each)

    def _gate(self, closing: Closing, probes: Sequence[Probe]) -> np.ndarray:
        """The numbers of a gate in the graph, as its tensor's shape wants them."""
        padded = [*probes, *[OPEN] * (self.repeats - len(probes))]
        values = np.stack([closing.values(probe) for probe in padded])
        shape = [1] * closing.rank
        shape[closing.axis] = values.shape[1]
        if self.repeats == 1 or closing.batch_axis is None:
            return values.reshape(shape)
        values = np.repeat(values, self.rows * closing.per_sample, axis=0)
        shape[closing.batch_axis] = len(values)
        return np.ascontiguousarray(values if closing.batch_axis < closing.axis else values.T).reshape(shape)


class Taker:
    """Takes closed channels off the output of a sink."""

    def __init__(
        self,
        taking: Taking,
        kept: Mapping[str, np.ndarray],
        rows: int,
        repeats: int,
        sink: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        self._taking, self._rows, self._repeats, self._sink = taking, rows, repeats, sink
        self.output = taking.output
        self._data = kept[taking.data]
        whole = np.concatenate([kept[taking.output]] * repeats, axis=taking.batch_axis or 0)
        self._outputs = np.moveaxis(whole, taking.batch_axis or 0, 0)
        self._open = np.moveaxis(kept[taking.output], taking.batch_axis or 0, 0)
        first = np.array([0])
        nothing = self._sink(np.zeros_like(np.take(self._data, first, taking.axis)), first)
        self._and_nothing = self._open + np.moveaxis(nothing, taking.batch_axis or 0, 0)
        self._whole = whole

    def taken_off(self, probes: Sequence[Probe]) -> np.ndarray:
        """The output, for each probe without the terms of its closed channels."""
        each = len(self._open)
        for number in range(self._repeats):
            rows = self._outputs[number * each : (number + 1) * each]
            probe = probes[number] if number < len(probes) else OPEN
            gates = gate_values(self._taking.channels, probe)
            positions = np.flatnonzero(gates != 1)
            if len(positions):
                terms = self._sink(self._closed_away(positions, gates), positions)
                np.subtract(self._and_nothing, np.moveaxis(terms, self._taking.batch_axis or 0, 0), out=rows)
            else:
                rows[...] = self._open
        return self._whole

    def _closed_away(self, positions: np.ndarray, gates: np.ndarray) -> np.ndarray:
        """What the gates take away from the tensor, at these positions alone."""
        shape = [1] * self._data.ndim
        shape[self._taking.axis] = len(positions)
        away = (1 - gates[positions]).astype(self._data.dtype).reshape(shape)
        return np.asarray(np.take(self._data, positions, self._taking.axis) * away)


def moved(array: np.ndarray, closing: Closing) -> np.ndarray:
    """A view `[batch, positions, ...]` of a tensor that is closed; a batch of one where there is none."""
    if closing.batch_axis is None:
        return np.moveaxis(array, closing.axis, 0)[None]
    return np.moveaxis(array, (closing.batch_axis, closing.axis), (0, 1))


def kept_file(number: int | None, portion: int) -> str:
    """The file in the lab for what a tensor is on a portion of the samples."""
    return f"{KEPT}{number}.{portion}.npy"


@lru_cache(maxsize=2)
def sessions(folder: Path, split: str) -> dict[str, Session]:
    """The sessions of a cut that were made so far, kept for its next task; those of older cuts are let go."""
    return {}
