"""Inquiries: questions about the loss, each answered once, in this run or an earlier one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings
from onnxprune.errors import UsageError
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.engine.engine import Answer, Engine, Question
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.sizes import rows_of_the_model
from onnxprune.probing.journal import Entry, Journal, journal_key, open_journal
from onnxprune.probing.losses import Loss, LossName, UserLoss, outputs_of, prepare_loss
from onnxprune.probing.samples import Samples, check_samples, sample_count, telling_samples
from onnxprune.reading.numbers import fits_whole, stored_bytes

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much is done and how much there is."""

ESTIMATE = "probing will take about"
"""What progress is told before the first probe, with a time behind it."""

Answers = Mapping[tuple[str, str], Answer]
"""By the question's key."""


@dataclass(frozen=True, slots=True)
class Effort:
    """
    How much is measured, with what, and where answers are kept.

    Args:
        samples: how many of the samples the loss is averaged over.
        means: what probing may use.
        cache: folder of the journal that answers are written to as they come, and taken from when they are there.

    Raises:
        UsageError: no number of samples.
    """

    samples: Samples = "auto"
    means: Means = field(default_factory=Means)
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_samples(self.samples)


@dataclass(frozen=True, slots=True)
class Measured:
    """
    Answers, `reused` of them from an earlier run.

    `path` is the journal that holds them, if they have one; `dropped` lines of it could not be trusted.
    """

    answers: Answers
    reused: int
    path: Path | None
    dropped: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of where the answers came from."""
        notes = []
        if self.dropped:
            notes.append(f"Damaged lines of {self.path} were dropped, and are measured again: {self.dropped:,}.")
        if self.reused:
            notes.append(f"{self.reused:,} of {len(self.answers):,} probes were run before: taken from {self.path}.")
        return tuple(notes)


@dataclass(frozen=True, slots=True)
class Inquiry:
    """What questions are about, a model and its loss on these samples; and the effort that answers them."""

    couplings: Couplings
    calibration: Calibration
    loss: Loss
    effort: Effort = field(default_factory=Effort)
    progress: Progress | None = None

    def measured(self, questions: Sequence[Question]) -> Measured:
        """
        The answers to all questions.

        Answers are written to the journal as they come, and those that are there are not asked for again. A loss of the
        user's own has no journal: one function cannot be told from another.

        Raises:
            DataError: the model's loss is not finite on these samples.
            OnnxPruneError: the journal cannot be read and written.
        """
        journal = self._journal()
        found = known(journal, questions)
        reused, left = len(found), [question for question in questions if question.key not in found]
        if left:
            self._ask(left, found, journal)
        else:
            self._tell("measured before", reused, reused)
        path, dropped = (journal.path, journal.dropped) if journal else (None, 0)
        return Measured(found, reused, path, dropped)

    def _ask(self, left: Sequence[Question], found: dict[tuple[str, str], Answer], journal: Journal | None) -> None:
        """
        Add the answers to what was found before.

        A gate that closes is a removal where groups are exact; for the others it is one in the masked form.
        """
        total = len(found) + len(left)
        exact = all(self.couplings.group(question.group).exact for question in left)
        form = self.couplings if exact else self.couplings.masked
        with Engine(form, self.calibration, self.loss, self.effort.means) as engine:
            self._tell(f"{ESTIMATE} {spelled(engine.seconds(left))}", len(found), total)
            for answer in engine.answers(left):
                found[answer.question.key] = answer
                if journal:
                    journal.append(Entry(*answer.question.key, answer.mean, answer.error))
                self._tell(answer.question.group, len(found), total)

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(what, done, total)

    def _journal(self) -> Journal | None:
        """The journal of these measurements, if they can have one."""
        if self.effort.cache is None or self.loss.user is not None:
            return None
        model, samples = self.couplings.graph.sha256, len(self.calibration)
        about: dict[str, str | int] = {"model": model, "loss": self.loss.name, "samples": samples}
        return open_journal(self.effort.cache, journal_key(self.couplings, self.calibration, self.loss), about)


def inquiry_for(
    couplings: Couplings,
    calibration: Calibration,
    loss: LossName | UserLoss | Loss,
    effort: Effort,
    progress: Progress | None = None,
    *,
    probes: int,
    outputs: Mapping[str, np.ndarray] | None = None,
) -> Inquiry:
    """
    The inquiry on the samples that tell most, as many as the effort allows for so many probes.

    `outputs` are the model's on all samples, where they are known.
    """
    refuse_parts(couplings.graph.model, "probes")
    count = sample_count(effort.samples, couplings, probes)
    rows = rows_of_the_model(couplings, calibration, effort.means.bytes)
    found = outputs or outputs_of(couplings.graph.model, calibration, batch=rows, threads=effort.means.threads)
    if not isinstance(loss, Loss):
        loss = prepare_loss(couplings.graph, calibration, loss, reference=found)
    few = telling_samples(loss, found, count)
    return Inquiry(couplings, calibration.only(few), loss.only(few), effort, progress)


def refuse_parts(model: ModelProto, what: str) -> None:
    """
    Refuse what a model cannot be asked for that is too large to be held at once.

    Raises:
        UsageError: see above.
    """
    if not fits_whole(model):
        raise UsageError(
            f"Expected a model of up to 2 GB for {what}, found one of {stored_bytes(model) / 1e9:.1f} GB, which is run "
            "part by part. Take --criterion magnitude or random with --no-compensate, without --weights or --quantize."
        )


def known(journal: Journal | None, questions: Sequence[Question]) -> dict[tuple[str, str], Answer]:
    """The answers that the journal gives."""
    entries = journal.entries if journal else {}
    told = ((question, entries[question.key]) for question in questions if question.key in entries)
    return {question.key: Answer(question, entry.mean, entry.error) for question, entry in told}


def spelled(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
