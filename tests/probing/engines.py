"""Two engines on the same questions: one that runs what lies behind a cut, one that runs the whole model each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from unittest.mock import patch

import numpy as np
from onnx import ModelProto

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.probing.engine import engine as engine_module
from onnxprune.probing.engine.engine import Answer, Engine, Question
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.tasks import Probe
from onnxprune.probing.losses import Loss, prepare_loss
from onnxprune.probing.probe import loss_of
from onnxprune.rewriting.rewrite import rewrite

TOLERANCE = 1e-5
"""Largest difference allowed between the engines, relative to the largest score of the group."""

ROUNDING = 1e-7
"""Change of the loss that float32 outputs cannot show."""

GATES = (0.0, 0.5, 1.1)
FEW = 3


def exact(couplings: Couplings) -> list[Group]:
    """The groups that are measured."""
    return [group for group in couplings.groups if group.exact]


def question(group: Group, channels: Sequence[int], gate: float = 0.0) -> Question:
    """What the loss changes by when these channels get the gate."""
    return Question(group.name, f"{list(channels)} at {gate}", (Probe(tuple(channels), gate),), (1.0, -1.0))


def questions_about(group: Group, gates: Sequence[float] = GATES, few: int = FEW) -> Iterator[Question]:
    """None, a few channels one by one, the last among them, and half of all at once, with each of the gates."""
    chosen = sorted({0, group.size - 1, *np.random.default_rng(0).choice(group.size, min(few, group.size), False)})
    yield question(group, [])
    for gate in gates:
        for channel in chosen:
            yield question(group, [int(channel)], gate)
        yield question(group, range(0, group.size, 2), gate)


def answers(
    couplings: Couplings,
    calibration: Calibration,
    loss: Loss,
    questions: Sequence[Question],
    means: Means | None = None,
    *,
    whole: bool = False,
) -> list[Answer]:
    """The answers in the order of the questions; none of them given by the whole model because a cut's was wrong."""
    with (
        patch.object(engine_module, "SAME_LOSS", np.inf),
        Engine(couplings, calibration, loss, means or Means(jobs=1), whole=whole) as engine,
    ):
        found = {answer.question.key: answer for answer in engine.answers(questions)}
    return [found[asked.key] for asked in questions]


def assert_engines_agree(
    couplings: Couplings,
    data: Mapping[str, np.ndarray] | np.ndarray,
    loss: str = "distance",
    *,
    groups: Sequence[Group] | None = None,
    gates: Sequence[float] = GATES,
    few: int = FEW,
    means: Means | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Running only what lies behind the cut changes no score of these groups, nor its error."""
    calibration = gather(couplings.graph, data)
    prepared = prepare_loss(couplings.graph, calibration, loss)
    groups = exact(couplings) if groups is None else groups
    asked = [one for group in groups for one in questions_about(group, gates, few)]
    found = answers(couplings, calibration, prepared, asked, means)
    expected = answers(couplings, calibration, prepared, asked, whole=True)
    for group in groups:
        of_group = [number for number, one in enumerate(asked) if one.group == group.name]
        for part in ("mean", "error"):
            left, right = (np.array([getattr(given[n], part) for n in of_group]) for given in (found, expected))
            worst, allowed = np.abs(left - right).max(), tolerance * np.abs(right).max() + ROUNDING
            assert worst <= allowed, f"{group.name}: the {part} differs by {worst:.1e}: {left} and {right}"


def assert_scores_are_loss_changes(
    couplings: Couplings, data: Mapping[str, np.ndarray] | np.ndarray, loss: str = "distance", *, rtol: float = 1e-4
) -> None:
    """In each group, closing channels changes the loss as it changes when the model is rewritten without them."""
    calibration = gather(couplings.graph, data)
    prepared = prepare_loss(couplings.graph, calibration, loss)
    open_loss = loss_of(couplings, calibration, prepared)
    for group in exact(couplings):
        asked = [question(group, [0]), question(group, [group.size - 1]), question(group, range(1, group.size, 2))]
        found = np.array([answer.mean for answer in answers(couplings, calibration, prepared, asked)])
        smaller = [without(couplings, group, one.probes[0].channels) for one in asked]
        expected = np.array([loss_of(couplings, calibration, prepared, model=one) for one in smaller]) - open_loss
        np.testing.assert_allclose(
            found, expected, rtol=rtol, atol=rtol * np.abs(expected).max() + ROUNDING, err_msg=group.name
        )


def without(couplings: Couplings, group: Group, channels: Sequence[int]) -> ModelProto:
    """The model rewritten without these channels."""
    return rewrite(couplings, plan_of(couplings, {group.name: np.setdiff1d(np.arange(group.size), channels)}))
