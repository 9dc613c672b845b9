"""
Width curves: the loss as a group gets narrower.

A curve is the finite difference of the loss in a group's width: the group is pruned to each of a few widths, what
matters least gone first, and the loss is measured. It takes as many probes as widths, however many channels there are.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from onnxprune.coupling.couple import Couplings, Group, of_that_name
from onnxprune.errors import UsageError
from onnxprune.probing.asking import Effort, Inquiry, Measured, Progress, inquiry_for
from onnxprune.probing.calibration import Calibration, Data, gather
from onnxprune.probing.engine.engine import Question
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.tasks import Probe
from onnxprune.probing.losses import Loss, LossName, UserLoss
from onnxprune.probing.samples import Samples
from onnxprune.probing.sensitivities import Criterion, Sensitivities, finite
from onnxprune.reading.graph import Constant
from onnxprune.reading.records import STRICT, json_text

SHARES = (0.0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 1.0)
"""Shares of a group's channels that are gone at the widths of its curve; one channel always stays."""

Repair = Callable[[Group, np.ndarray], Mapping[str, np.ndarray]]
"""
Given a group and its kept channels, new numbers for constants that read it: arrays of the constants' own shapes and
dtypes, by name. What stands at removed positions does not matter.
"""


@dataclass(frozen=True, config=STRICT)
class WidthCurve:
    """One group's loss change at each width, widest first; the errors are standard errors over the samples."""

    name: str
    size: int
    widths: tuple[int, ...]
    losses: tuple[float, ...]
    stderr: tuple[float, ...]


@dataclass(frozen=True, config=STRICT)
class WidthCurves:
    """Width curves of groups, with what ordered the channels, and the loss that was measured."""

    format: Literal["onnxprune-curves"]
    version: Literal[1]
    groups: tuple[WidthCurve, ...]
    criterion: Criterion
    loss: str
    samples: int

    def of(self, group: str) -> WidthCurve:
        """The curve of the group of that name."""
        return of_that_name(group, self.groups, "group with a curve")

    def to_json(self) -> str:
        """The curves as JSON text."""
        return json_text(_ADAPTER, self)


_ADAPTER: TypeAdapter[WidthCurves] = TypeAdapter(WidthCurves)


def width_curves(
    couplings: Couplings,
    scores: Sensitivities,
    data: Data | Calibration | None = None,
    loss: LossName | UserLoss | Loss = "distance",
    *,
    groups: Sequence[Group] | None = None,
    shares: Sequence[float] = SHARES,
    repair: Repair | None = None,
    samples: Samples = "auto",
    means: Means | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> WidthCurves:
    """
    The loss change after pruning one group to each of a few widths.

    Args:
        couplings: of the model.
        scores: of any criterion; the lowest go first.
        data, loss, samples, cache, progress: as `probe` takes them.
        groups: which groups; by default all that have scores.
        shares: parts of the channels that go; at least one channel stays.
        repair: gives the layers that read a group other weights for each width, before the loss is measured.
        means: what probing may use.

    Raises:
        UsageError: shares that are none, or a repair that gives something else than the constants' new numbers.
    """
    effort = Effort(samples, means or Means(), cache)
    chosen = [couplings.group(entry.name) for entry in scores.groups] if groups is None else list(groups)
    points = len(shares) * len(chosen)
    inquiry = inquiry_for(couplings, gather(couplings.graph, data), loss, effort, progress, probes=points)
    return curves_of(inquiry, chosen, scores, shares=shares, repair=repair)[0]


def curves_of(
    inquiry: Inquiry,
    groups: Sequence[Group],
    scores: Sensitivities,
    *,
    shares: Sequence[float] = SHARES,
    repair: Repair | None = None,
) -> tuple[WidthCurves, Measured]:
    """The curves of these groups, and where their points came from."""
    if not shares or any(not 0 <= share <= 1 for share in shares):
        raise UsageError(f"Expected shares of channels that go, each from 0 to 1, found {list(shares)}.")
    constants = inquiry.couplings.graph.constants

    def repaired(group: Group, kept: np.ndarray) -> Mapping[str, np.ndarray]:
        return checked_repair(repair(group, kept), group, constants) if repair else {}

    asked = {group.name: list(width_questions(group, scores, shares, repaired)) for group in groups}
    questions = [question for alike in asked.values() for _, question in alike if question is not None]
    measurement = inquiry.measured(questions)
    curves = []
    for name, alike in asked.items():
        answers = [None if question is None else measurement.answers[question.key] for _, question in alike]
        found = [(0.0, 0.0) if answer is None else (answer.mean, answer.error) for answer in answers]
        losses, errors = (finite(np.array(values)) for values in zip(*found, strict=True))
        widths = tuple(width for width, _ in alike)
        curves.append(WidthCurve(name, inquiry.couplings.group(name).size, widths, losses, errors))
    loss, samples = inquiry.loss.name, len(inquiry.calibration)
    return WidthCurves("onnxprune-curves", 1, tuple(curves), scores.criterion, loss, samples), measurement


def width_questions(
    group: Group, scores: Sensitivities, shares: Sequence[float], repair: Repair
) -> Iterator[tuple[int, Question | None]]:
    """The widths of a curve, widest first, each with its question; the full width needs none."""
    order = np.argsort(scores.importance(group.name), kind="stable")
    for width in sorted({max(1, group.size - round(share * group.size)) for share in shares}, reverse=True):
        if width == group.size:
            yield width, None
            continue
        removed = np.sort(order[: group.size - width])
        constants = repair(group, np.setdiff1d(order, removed))
        name = f"width {width}, {fingerprint(removed, constants)}"
        yield width, Question(group.name, name, (Probe(tuple(map(int, removed)), 0.0, constants),), (1.0, -1.0))


def checked_repair(
    given: Mapping[str, np.ndarray], group: Group, constants: Mapping[str, Constant]
) -> dict[str, np.ndarray]:
    """What a repair gave, if it gave numbers for constants of the model in their own shapes and dtypes."""
    if not isinstance(given, Mapping):
        raise UsageError(f"Expected of the repair of {group.name!r} arrays by name, found {type(given).__name__}.")
    for name, array in given.items():
        where = f"of the repair of group {group.name!r}"
        if name not in constants:
            raise UsageError(f"Expected {where} names of the model's constants, found {name!r}, which is none.")
        wanted = constants[name].array()
        if not isinstance(array, np.ndarray) or (array.shape, array.dtype) != (wanted.shape, wanted.dtype):
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise UsageError(
                f"Expected {where} for {name!r} an array {wanted.dtype} {list(wanted.shape)}, found {found}. "
                "Give it the constant's own shape and dtype."
            )
        if not np.isfinite(array).all():
            raise UsageError(f"Expected {where} finite numbers for {name!r}, found NaN or infinity.")
    return dict(given)


def fingerprint(removed: np.ndarray, constants: Mapping[str, np.ndarray]) -> str:
    """A short digest of what a probe changes."""
    digest = hashlib.sha256(removed.tobytes())
    for name, array in sorted(constants.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()[:16]
