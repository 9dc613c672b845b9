"""
The probe engine: answers many questions about the loss at little cost.

Every group has a cut of its own; probes of a cut run only what lies behind it, several of them in one run where samples
do not disturb each other, in worker processes where that pays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from onnxprune.coupling.couple import Couplings
from onnxprune.errors import DataError
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.engine import sizes
from onnxprune.probing.engine.lab import Lab
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.running import run_task, sessions
from onnxprune.probing.engine.sizes import rows_of_the_model
from onnxprune.probing.engine.stations import Key, Stations
from onnxprune.probing.engine.tasks import Probe, Task
from onnxprune.probing.engine.workers import Results, run_elsewhere, run_here, run_in_processes
from onnxprune.probing.loss_graph import losses_from
from onnxprune.probing.losses import Loss, outputs_of
from onnxprune.reading.observing import Session, session_for
from onnxprune.rules.axes import Dim

SERIAL_SECONDS = 4.0
"""Work up to this long is done in this process: starting others would take about as long."""

TASK_SECONDS = 2.0
"""What a task should take: short enough to lose little when a worker dies, long enough to be worth sending."""

TIMED_SAMPLES = 16
"""Samples of the timed run, from which costs are estimated."""

SAME_LOSS = 1e-3
"""How far the loss with all gates open may be from the model's own, relative to it or to 1."""


@dataclass(frozen=True)
class Question:
    """
    A finite difference of the loss in one group: the losses of `probes` times `weights`, the last of which is the
    weight of the loss with all gates open. `name` tells it from the group's other questions.
    """

    group: str
    name: str
    probes: tuple[Probe, ...]
    weights: tuple[float, ...]

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.group, self.name


@dataclass(frozen=True)
class Answer:
    """A finite difference: its mean over the samples, and the standard error of that mean."""

    question: Question
    mean: float
    error: float


class Engine:
    """
    Answers questions; to be used in a `with` block.

    Args:
        couplings: of the model.
        calibration, loss: the samples that all losses are averaged over.
        means: what may be used.
        whole: run the whole model for every probe, one probe a run: slow, and simple enough to check the rest against.

    Raises:
        DataError: the model's loss is not finite on these samples.
    """

    def __init__(
        self,
        couplings: Couplings,
        calibration: Calibration,
        loss: Loss,
        means: Means | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._couplings, self._calibration, self._loss, self._means = couplings, calibration, loss, means or Means()
        model = couplings.graph.model
        own = session_for(model, threads=self._means.threads or 1, provider=self._means.provider)
        rows = rows_of_the_model(couplings, calibration, self._means.bytes)
        outputs = outputs_of(own, calibration, batch=rows)
        self._open = losses_from(loss, outputs, calibration)
        check_finite(self._open, loss)
        self._row_seconds, apart = timed(own, calibration, outputs, batch=max(2, rows))
        self._lab = Lab()
        self._stations = Stations(
            self._lab,
            couplings,
            calibration,
            loss,
            self._means,
            rows_are_free=apart and batch_first(couplings, loss),
        )
        self._whole = whole

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *failure: object) -> None:
        sessions.cache_clear()
        self._lab.close()

    def seconds(self, questions: Sequence[Question]) -> float:
        """Estimate of how long these questions will take, from a timed run of the model."""
        work = self._work(questions)
        return work / self.processes(work)

    def processes(self, work: float) -> int:
        """How many processes probe at once when there is work for so many seconds: no more than the memory holds."""
        if self._means.executor is not None:
            return self._means.processes
        fitting = max(1, int(self._means.bytes / max(sizes.PROCESS_BYTES, 1)))
        return 1 if work < SERIAL_SECONDS else min(self._means.processes, fitting)

    def answers(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """The answers, as they come."""
        work = self._work(questions)
        asked = list(self._portioned(questions))
        tasks = {number: self._task(key, alike) for number, (key, alike) in enumerate(asked)}
        for number, losses in self._run(tasks, work):
            key, alike = asked[number]
            yield from self._differences(alike, self._checked(key, tasks[number], losses))

    def _key(self, question: Question) -> Key:
        return Key(question.group, tuple(question.probes[0].constants), self._whole)

    def _work(self, questions: Sequence[Question]) -> float:
        """Seconds of one process for these questions; their stations are there afterwards."""
        self._stations.prepare(dict.fromkeys(map(self._key, questions)))
        return sum(self._probe_seconds(self._key(question)) * len(question.probes) for question in questions)

    def _probe_seconds(self, key: Key) -> float:
        return self._row_seconds * self._stations.at(key).share * len(self._calibration)

    def _portioned(self, questions: Sequence[Question]) -> Iterator[tuple[Key, Sequence[Question]]]:
        """The questions in portions for a task each, all of one station."""
        for key, all_alike in groupby(sorted(questions, key=self._order(questions)), key=self._key):
            alike = list(all_alike)
            each = self._probe_seconds(key) * len(alike[0].probes)
            most = max(1, round(TASK_SECONDS / max(each, 1e-9)))
            size = -(-len(alike) // -(-len(alike) // most))  # portions of one size: none that is nearly empty
            for start in range(0, len(alike), size):
                yield key, alike[start : start + size]

    def _order(self, questions: Sequence[Question]) -> Callable[[Question], int]:
        """Questions of one station side by side, stations in the order in which they are first asked for."""
        places = {key: place for place, key in enumerate(dict.fromkeys(map(self._key, questions)))}
        return lambda question: places[self._key(question)]

    def _task(self, key: Key, alike: Sequence[Question]) -> Task:
        """A task that begins with all gates open."""
        own = {name: self._couplings.graph.constants[name].array() for name in key.free}
        return self._stations.task(key, [Probe(constants=own), *(probe for one in alike for probe in one.probes)])

    def _run(self, tasks: dict[int, Task], work: float) -> Results:
        processes = self.processes(work)
        if self._means.executor is not None:
            return run_elsewhere(self._means.executor, tasks, self._lab, self._means.tasks_at_once)
        return run_here(tasks) if processes == 1 else run_in_processes(tasks, self._lab, processes)

    def _checked(self, key: Key, task: Task, losses: np.ndarray) -> np.ndarray:
        """
        The losses, if with all gates open they are the model's own; else those of the whole model, run once more.

        The first are with all gates open, on all samples. Those of the whole model may differ from its own as well:
        where samples disturb each other, they depend on how many run at once.
        """
        first = losses[0, : len(task.portions[0])]
        own = self._open[: len(first)]
        if self._loss.user is not None:
            return losses
        if (np.abs(first - own) <= SAME_LOSS * np.maximum(1, np.abs(own))).all():
            return np.vstack([self._open, losses[1:]])
        plain = replace(key, whole=True)
        self._stations.prepare([plain])
        again = run_task(replace(self._stations.task(plain, task.probes), checks=True))
        assert again is not None
        return again

    def _differences(self, alike: Sequence[Question], losses: np.ndarray) -> Iterator[Answer]:
        """The answers from losses `[1 + probes, samples]`, the first with all gates open."""
        position = 1
        for question in alike:
            after = position + len(question.probes)
            changes = np.tensordot(question.weights, np.vstack([losses[position:after], losses[0]]), 1)
            position = after
            with np.errstate(invalid="ignore"):  # a loss that overflows has no deviation
                error = changes.std(ddof=1) / np.sqrt(len(changes)) if len(changes) > 1 else 0.0
            yield Answer(question, float(changes.mean()), float(error))


def check_finite(losses: np.ndarray, loss: Loss) -> None:
    """Refuse to measure changes of a loss that is no number to begin with."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise DataError(
            f"Expected finite losses ({loss.name}) of the unpruned model, found NaN or infinity for {len(bad)} of "
            f"{len(losses)} samples, sample {bad[0]} first. Look at the model's outputs there, or leave them out."
        )


def timed(
    own: Session, calibration: Calibration, outputs: Mapping[str, np.ndarray], *, batch: int = TIMED_SAMPLES
) -> tuple[float, bool]:
    """
    Seconds for a sample, and whether samples leave each other alone: some in another order give what all gave.

    They do not where the first axis is time, or where something is taken over the batch. At most `batch` run at once.
    """
    last = np.arange(len(calibration))[-TIMED_SAMPLES // 2 :][: -(-len(calibration) // 2)]
    order = np.concatenate([last[::-1], last])  # none beside the samples that it was beside
    some = calibration.only(order)
    start = time.perf_counter()
    again = outputs_of(own, some, batch=batch)
    seconds = (time.perf_counter() - start) / len(some)
    if calibration.batch is not None or calibration.stacked:
        return seconds, False
    return seconds, len(calibration) > 1 and all(alike(again[name], outputs[name][order]) for name in again)


def alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Are the numbers the same but for rounding?"""
    scale = float(np.abs(other, dtype=np.float64).max(initial=1e-30)) if other.dtype.kind == "f" else 1.0
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-3, atol=1e-4 * scale, equal_nan=True))


def batch_first(couplings: Couplings, loss: Loss) -> bool:
    """Is the first axis of every output that the loss reads just the samples?"""
    for name in loss.outputs:
        tensor = couplings.typing.tensors.get(name)
        if tensor is None or not tensor.axes:
            return False
        first = couplings.typing.solver.resolve(tensor.axes[0])
        if not (isinstance(first, Dim) and first in couplings.batch):
            return False
    return True
