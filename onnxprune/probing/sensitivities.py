"""A score for every channel of every group, with its standard error."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from onnxprune.coupling.couple import Couplings, Slice, of_that_name
from onnxprune.errors import PlanError
from onnxprune.reading.records import STRICT, json_text, load_record

Criterion = Literal[
    "auto", "sensitivity", "obs", "magnitude", "activation", "taylor", "redundancy", "forgetting", "random"
]

LOSSES = frozenset(("sensitivity", "obs", "taylor", "forgetting"))
"""Criteria whose scores are losses, so that those of different groups can be compared."""


@dataclass(frozen=True, config=STRICT)
class GroupScores:
    """Scores of one group's channels, in original order; low scores go first."""

    name: str
    slices: tuple[Slice, ...]
    scores: tuple[float, ...]
    stderr: tuple[float, ...]


@dataclass(frozen=True, config=STRICT)
class Sensitivities:
    """
    A score per channel, and its standard error in the same unit.

    With criterion "sensitivity" a score is the loss change when the channel goes (nats for cross-entropy and KL), so
    scores of different groups can be compared; most other criteria only order the channels inside a group. "auto": the
    scores of each group are those of the criterion that lost least on it.
    """

    format: Literal["onnxprune-scores"]
    version: Literal[1]
    groups: tuple[GroupScores, ...]
    criterion: Criterion = "sensitivity"
    loss: str = ""
    delta: float = 1.0
    samples: int = 0
    order: int = 1
    """Of the finite difference: 2 gives second derivatives."""

    def of(self, group: str) -> np.ndarray:
        """Scores of the group's channels, float64 `[size]`, with their signs."""
        return np.array(of_that_name(group, self.groups, "group with scores").scores)

    def importance(self, group: str) -> np.ndarray:
        """
        How much each channel of the group matters, float64 `[size]`: the score's absolute value.

        A channel whose removal lowers the loss on these samples is one that the model reacts to, too: signed orders
        remove all of those at once and do worse than chance.
        """
        return np.asarray(np.abs(self.of(group)))

    @property
    def are_losses(self) -> bool:
        """Can scores of different groups be compared?"""
        return self.criterion in LOSSES

    def to_json(self) -> str:
        """The scores as JSON text."""
        return json_text(_ADAPTER, self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scores as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


_ADAPTER: TypeAdapter[Sensitivities] = TypeAdapter(Sensitivities)


def sensitivities_of(
    couplings: Couplings,
    scores: Mapping[str, np.ndarray],
    stderr: Mapping[str, np.ndarray] | None = None,
    *,
    criterion: Criterion,
    loss: str = "",
    delta: float = 1.0,
    samples: int = 0,
    order: int = 1,
) -> Sensitivities:
    """The scores of the named groups as one value; a channel whose score is no finite number goes last."""
    entries = []
    for name, values in scores.items():
        errors = stderr[name] if stderr else np.zeros(len(values))
        slices = couplings.group(name).slices
        entries.append(GroupScores(name, slices, finite(values), finite(errors)))
    return Sensitivities("onnxprune-scores", 1, tuple(entries), criterion, loss, delta, samples, order)


def finite(values: np.ndarray) -> tuple[float, ...]:
    """The numbers, with the largest float32 for each that is none."""
    largest = float(np.finfo(np.float32).max)
    return tuple(
        map(float, np.nan_to_num(np.asarray(values, np.float64), nan=largest, posinf=largest, neginf=-largest))
    )


def load_scores(path: str | os.PathLike[str], couplings: Couplings) -> Sensitivities:
    """
    The scores in a JSON file, checked against the model.

    Raises:
        PlanError: no such file, not scores, or scores of another model.
    """
    made_by = "onnxprune sensitivity IN -o FILE"
    scores = load_record(_ADAPTER, path, what="onnxprune scores", made_by=made_by)
    check_fit(scores, couplings, str(path))
    return scores


def check_fit(scores: Sensitivities, couplings: Couplings, where: str) -> None:
    """Refuse scores whose groups the model does not have, or in another size."""
    known = {group.name: group for group in couplings.groups}
    for entry in scores.groups:
        group = known.get(entry.name)
        found = "no such group" if group is None else f"{group.size} channels"
        if group is None or group.size != len(entry.scores):
            raise PlanError(
                f"Scores in {where!r} do not fit this model: they give group {entry.name!r} {len(entry.scores)} "
                f"scores, the model has {found}. Run `onnxprune sensitivity` again on this model."
            )
        if len(entry.stderr) != len(entry.scores):
            raise PlanError(
                f"Scores in {where!r}: group {entry.name!r} has {len(entry.scores)} scores and {len(entry.stderr)} "
                "standard errors. Give one for each score, or measure again."
            )
        if not np.isfinite(entry.scores).all():
            raise PlanError(f"Scores in {where!r}: group {entry.name!r} has scores that are not finite. Measure again.")
