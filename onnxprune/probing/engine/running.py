"""Run probes in a lab: what a worker process does, and the same in this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.probing.calibration import first_line
from onnxprune.probing.engine.closing import GatedFeeds, SinkOutput
from onnxprune.probing.engine.lab import folder_of
from onnxprune.probing.engine.splitting import SINK_DATA, SINK_WEIGHT
from onnxprune.probing.engine.tasks import LABELS, Probe, Taking, Task, kept_name
from onnxprune.probing.loss_graph import target_name
from onnxprune.probing.losses import user_losses
from onnxprune.reading.observing import Session, session_for


def run_task(task: Task, contents: Mapping[str, bytes] | None = None) -> np.ndarray | None:
    """
    Losses `[probes, samples]`, float64; NaN where the first probe did not run.

    None when this process has not got the lab: then it wants the same task again, with the lab's contents.
    """
    with folder_of(task.lab, contents) as folder:
        if folder is None:
            return None
        runner = Runner(task, folder)
        return np.concatenate([runner.losses(number) for number in range(len(task.portions))], axis=1)


class Runner:
    """A task with all that it needs at hand: the two parts of its cut, and the samples."""

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
        gated = GatedFeeds(self.split, kept, fixed, len(rows), repeats)
        sinks = [SinkOutput(taking, kept, repeats, self._sink(taking)) for taking in self.split.takings]
        found = np.full((len(self.task.probes), len(samples)), np.nan)
        for start in range(0 if self.task.checks or portion == 0 else 1, len(found), repeats):
            probes = self.task.probes[start : start + repeats]
            closed = gated.closed(probes) | {sink.name: sink.closed(probes) for sink in sinks}
            feeds = {name: value for name, value in closed.items() if name in self.inputs}
            outputs = ran(self.behind, None, feeds | dict(probes[0].constants))
            found[start : start + len(probes)] = self._by_probe(outputs, probes, samples, len(rows))
            gated.open(probes)
        return found

    def _sink(self, taking: Taking) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """The sink as a function of some positions of its tensor, already gated, and of which they are."""
        alone = self._session(taking.part)
        weight = np.load(self.folder / f"{taking.weight}.npy", mmap_mode="r")

        def run(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
            part = np.take(weight, positions, taking.weight_axis)
            (output,) = ran(alone, None, {SINK_DATA: data, SINK_WEIGHT: part})
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
        for name, number in self.split.kept.items():
            path = self.folder / f"{kept_name(number, portion)}.npy"
            if path.exists():
                found[name] = np.load(path)
        missing = [one.name for one in self.split.across if one.name not in found]
        made = ran(self._before, missing, self._needed(feed)) if missing else []
        return found | dict(zip(missing, made, strict=True))

    def _needed(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {port.name: feed[port.name] for port in self._before.get_inputs()}

    def _repeated(
        self, kept: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray], repeats: int
    ) -> dict[str, np.ndarray]:
        """What comes across, for as many samples as share a run."""
        if repeats == 1:
            return dict(kept)
        made = [one.name for one in self.split.across if one.counts_rows and one.name not in feed]
        found = {
            one.name: np.concatenate([kept[one.name]] * repeats, axis=one.batch_axis or 0)
            for one in self.split.across
            if one.name not in made
        }
        if made:
            rows = {name: np.concatenate([value] * repeats) for name, value in feed.items()}
            found |= dict(zip(made, ran(self._before, made, self._needed(rows)), strict=True))
        return found

    def _targets(self, rows: np.ndarray, repeats: int) -> dict[str, np.ndarray]:
        """What the loss compares with, for each row of a run."""
        if self.setting.loss.user is not None:
            return {}
        names = [target_name(name) for name in self.setting.loss.targets]
        targets = {name: self._of(rows, self.arrays[name]) for name in names}
        return {name: np.concatenate([value] * repeats) if repeats > 1 else value for name, value in targets.items()}

    def _by_probe(
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


def ran(session: Session, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What a part of the model gives for this feed."""
    try:
        return list(session.run(names, feed))
    except Exception as failure:  # ONNX Runtime raises many kinds
        raise OnnxPruneError(
            f"Expected a part of the model to run as the whole of it does, found: {first_line(failure)} "
            "If there is too little memory, give --jobs 1 or less with --memory; else please report the model."
        ) from None


@lru_cache(maxsize=2)
def sessions(folder: Path, split: str) -> dict[str, Session]:
    """The sessions of a cut that were made so far, kept for its next task; those of older cuts are let go."""
    return {}
