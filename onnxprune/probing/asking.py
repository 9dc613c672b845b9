"""Ask the engine what is not known from an earlier run, and keep what it says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.engine.engine import Answer, Engine, Question
from onnxprune.probing.engine.means import Means
from onnxprune.probing.journal import Entry, Journal, journal_key, open_journal
from onnxprune.probing.losses import Loss

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much is done and how much there is."""

ESTIMATE = "probing will take about"
"""What progress is told before the first probe, with a time behind it."""

Answers = Mapping[tuple[str, str], Answer]
"""By the question's key."""


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
            notes.append(f"{self.dropped:,} damaged lines of {self.path} were dropped and are measured again.")
        if self.reused:
            notes.append(f"{self.reused:,} of {len(self.answers):,} probes were run before: taken from {self.path}.")
        return tuple(notes)


def measured(
    couplings: Couplings,
    calibration: Calibration,
    loss: Loss,
    questions: Sequence[Question],
    means: Means,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Measured:
    """
    The answers to all questions.

    With a folder as `cache`, answers are written to its journal as they come, and those that are there are not asked
    for again. A loss of the user's own has no journal: one function cannot be told from another.

    Raises:
        DataError: the model's loss is not finite on these samples.
        OnnxPruneError: the journal cannot be read and written.
    """
    journal = journal_in(cache, couplings, calibration, loss)
    found = known(journal, questions)
    reused, left = len(found), [question for question in questions if question.key not in found]
    if progress and not left:
        progress("measured before", reused, reused)
    if left:
        with Engine(couplings, calibration, loss, means) as engine:
            if progress:
                progress(f"{ESTIMATE} {spelled(engine.seconds(left))}", reused, len(questions))
            for answer in engine.answers(left):
                found[answer.question.key] = answer
                if journal:
                    journal.append(Entry(*answer.question.key, answer.mean, answer.error))
                if progress:
                    progress(answer.question.group, len(found), len(questions))
    path, dropped = (journal.path, journal.dropped) if journal else (None, 0)
    return Measured(found, reused, path, dropped)


def journal_in(
    folder: str | os.PathLike[str] | None, couplings: Couplings, calibration: Calibration, loss: Loss
) -> Journal | None:
    """The journal of these measurements, if they can have one."""
    if folder is None or loss.user is not None:
        return None
    about: dict[str, str | int] = {"model": couplings.graph.sha256, "loss": loss.name, "samples": len(calibration)}
    return open_journal(folder, journal_key(couplings, calibration, loss), about)


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
