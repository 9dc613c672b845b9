"""
Channel sensitivities by finite differences of the loss in the gates.

With a gate vector of ones the loss is L(1); closing channel c by δ gives the score (L(1 - δ e_c) - L(1)) / δ. δ = 1 is
the exact loss change of removing the channel; a small δ is taken on both sides, (L(1 - δ e_c) - L(1 + δ e_c)) / 2δ,
which is minus the derivative dL/dx of the textbook: what the loss would grow by, to first order, were it closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import UsageError
from onnxprune.probing.calibration import Calibration, Data, gather
from onnxprune.probing.engine import Engine, Question
from onnxprune.probing.losses import Loss, LossName, UserLoss, losses_from, outputs_of, prepare_loss
from onnxprune.probing.means import Means
from onnxprune.probing.running import Probe
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of

Progress = Callable[[str, int, int], None]
"""Told what is going on, how much is done and how much there is."""


def probe(
    couplings: Couplings,
    data: Data | Calibration | None = None,
    loss: LossName | UserLoss | Loss = "distance",
    *,
    groups: Sequence[Group] | None = None,
    delta: float = 1.0,
    order: int = 1,
    means: Means | None = None,
    progress: Progress | None = None,
    whole: bool = False,
) -> Sensitivities:
    check_delta(delta)
    calibration = gather(couplings.graph, data)
    means = means or Means()
    if not isinstance(loss, Loss):
        loss = prepare_loss(couplings.graph, calibration, loss, threads=means.threads)
    if delta < 1 and order == 1 and loss.is_distance:
        raise UsageError(
            f"The derivative of {loss.name} to the model's own outputs is zero at the model itself. "
            "Give labels and --loss cross-entropy for derivatives, or keep --delta 1."
        )
    chosen = [group for group in couplings.groups if group.exact] if groups is None else list(groups)
    questions = [question for group in chosen for question in channel_questions(group, delta, order)]
    found: dict[tuple[str, str], tuple[float, float]] = {}
    with Engine(couplings, calibration, loss, means, whole=whole) as engine:
        for answer in engine.answers(questions):
            found[answer.question.group, answer.question.name] = answer.mean, answer.error
            if progress:
                progress(answer.question.group, len(found), len(questions))
    scores = {g.name: np.array([found[g.name, str(c)][0] for c in range(g.size)]) for g in chosen}
    errors = {g.name: np.array([found[g.name, str(c)][1] for c in range(g.size)]) for g in chosen}
    return sensitivities_of(
        couplings, scores, errors, criterion="sensitivity", loss=loss.name, delta=delta, samples=len(calibration)
    )


def check_delta(delta: float) -> None:
    """Refuse a gate that does not close, or that closes by more than all."""
    if not 0 < delta <= 1:
        raise UsageError(f"Expected a delta above 0 and up to 1, found {delta}.")


def loss_of(
    couplings: Couplings, calibration: Calibration, loss: Loss, *, model: ModelProto | None = None, threads: int = 0
) -> float:
    """The mean loss of the model, or of another one with the same interface, over the samples."""
    outputs = outputs_of(model or couplings.graph.model, calibration, threads=threads)
    return float(losses_from(loss, outputs, calibration).mean())


def channel_questions(group: Group, delta: float, order: int) -> Iterator[Question]:
    """What each channel of the group matters: the finite difference of this step and order in its gate."""
    gates, weights = stencil(delta, order)
    for channel in range(group.size):
        yield Question(group.name, str(channel), tuple(Probe((channel,), gate) for gate in gates), weights)


def stencil(delta: float, order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The gates that are probed, and the weights of their losses and of the loss with all gates open."""
    if order == 2:
        return (1 - delta, 1 + delta), (1 / delta**2, 1 / delta**2, -2 / delta**2)
    if delta == 1:
        return (0.0,), (1.0, -1.0)
    return (1 - delta, 1 + delta), (0.5 / delta, -0.5 / delta, 0.0)
