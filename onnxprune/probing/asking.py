"""Ask the engine what is not known from an earlier run, and keep what it says."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.engine import Answer, Engine, Question
from onnxprune.probing.losses import Loss
from onnxprune.probing.means import Means

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much is done and how much there is."""

Answers = Mapping[tuple[str, str], Answer]
"""By the question's key."""


def measured(
    couplings: Couplings,
    calibration: Calibration,
    loss: Loss,
    questions: Sequence[Question],
    means: Means,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Answers:
    """The answers to all questions."""
    found: dict[tuple[str, str], Answer] = {}
    with Engine(couplings, calibration, loss, means) as engine:
        for answer in engine.answers(questions):
            found[answer.question.key] = answer
            if progress:
                progress(answer.question.group, len(found), len(questions))
    return found
