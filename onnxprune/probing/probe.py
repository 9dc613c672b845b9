"""
Channel sensitivities by finite differences of the loss in the gates.

With a gate vector of ones the loss is L(1); closing channel c by δ gives the score (L(1 - δ e_c) - L(1)) / δ. δ = 1 is
the exact loss change of removing the channel; a small δ is taken on both sides, (L(1 - δ e_c) - L(1 + δ e_c)) / 2δ,
which is minus the derivative dL/dx of the textbook: what the loss would grow by, to first order, were it closed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import UsageError
from onnxprune.probing.asking import Effort, Inquiry, Measured, Progress, inquiry_for
from onnxprune.probing.calibration import Calibration, Data, gather
from onnxprune.probing.engine.engine import Question
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.tasks import Probe
from onnxprune.probing.loss_graph import losses_from
from onnxprune.probing.losses import Loss, LossName, UserLoss, outputs_of
from onnxprune.probing.samples import Samples
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of
from onnxprune.reading.observing import CPU


def probe(
    couplings: Couplings,
    data: Data | Calibration | None = None,
    loss: LossName | UserLoss | Loss = "distance",
    *,
    groups: Sequence[Group] | None = None,
    inexact: bool = False,
    samples: Samples = "auto",
    delta: float | None = None,
    order: int = 1,
    jobs: int | None = None,
    memory: int | str | None = None,
    threads: int = 0,
    provider: str = CPU,
    executor: Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Sensitivities:
    """
    A score and its standard error for every channel of the groups, measured by closing gates.

    Args:
        couplings: of the model.
        data: the samples, in any form that `prune` takes.
        loss: as `prune` takes it, or one that was prepared for these samples.
        groups: which groups to measure; all exact ones by default, and with `inexact` all that can be proven.
        samples: how many of the samples the loss is averaged over, those that tell most: a number, "all", or "auto":
            32, and more where that costs little.
        delta: how far a gate closes: 1 is removal (the default), a small number gives the derivative by central
            differences. Of second derivatives the default is 0.1.
        order: 1, or 2 for the second derivative, by the difference L(1 - δ) - 2 L(1) + L(1 + δ) over δ².
        jobs, memory, threads, provider, executor: what probing may use, as in `Means`.
        cache: folder of the journal that answers are written to as they come and taken from when they are there; a
            loss of the user's own has none.
        progress: called as probing goes on.

    Raises:
        UsageError: delta or order mean nothing, or the derivative of a distance to the model itself is asked for.
    """
    delta = step(delta, order)
    effort = Effort(samples, Means(jobs, memory, threads, provider, executor), cache)
    chosen = [group for group in couplings.groups if group.exact or (inexact and couplings.proves(group))]
    chosen = chosen if groups is None else list(groups)
    channels = sum(group.size for group in chosen)
    inquiry = inquiry_for(couplings, gather(couplings.graph, data), loss, effort, progress, probes=channels)
    return sensitivities(inquiry, chosen, delta, order)[0]


def sensitivities(
    inquiry: Inquiry, groups: Sequence[Group], delta: float, order: int
) -> tuple[Sensitivities, Measured]:
    """The scores of these groups' channels, and where they came from."""
    loss = inquiry.loss
    if delta < 1 and order == 1 and loss.is_distance:
        raise UsageError(
            f"The derivative of {loss.name} to the model's own outputs is zero at the model itself. "
            "Give labels and --loss cross-entropy for derivatives, ask for the second one with --order 2, or keep "
            "--delta 1."
        )
    questions = {group.name: list(channel_questions(group, delta, order)) for group in groups}
    found = inquiry.measured([one for alike in questions.values() for one in alike])
    answers = {name: [found.answers[one.key] for one in alike] for name, alike in questions.items()}
    scores = sensitivities_of(
        inquiry.couplings,
        {name: np.array([answer.mean for answer in alike]) for name, alike in answers.items()},
        {name: np.array([answer.error for answer in alike]) for name, alike in answers.items()},
        criterion="sensitivity",
        loss=loss.name,
        delta=delta,
        order=order,
        samples=len(inquiry.calibration),
    )
    return scores, found


CURVATURE_STEP = 0.1
"""
Step of second differences: where the model is smooth, the worst group of the bundled models is within 1.1 % of
autodiff; at 0.05 rounding makes that 4.6 %, at 0.02 more than 20 %.
"""

SMALLEST_CURVATURE_STEP = 0.02
SMALLEST_STEP = 1e-4


def step(delta: float | None, order: int) -> float:
    """
    The step that is meant.

    Raises:
        UsageError: no step is, or no order.
    """
    if order not in (1, 2):
        raise UsageError(f"Expected an order of 1 or 2, found {order!r}.")
    if delta is None:
        return 1.0 if order == 1 else CURVATURE_STEP
    if not 0 < delta <= 1:
        raise UsageError(f"Expected a delta above 0 and up to 1, found {delta}.")
    if delta < SMALLEST_STEP:
        raise UsageError(
            f"Expected a delta of {SMALLEST_STEP} or more, found {delta}: over a smaller step the rounding of float32 "
            "hides the difference. Give 0.004."
        )
    if order == 2 and delta < SMALLEST_CURVATURE_STEP:
        raise UsageError(
            f"Expected for second derivatives a delta of {SMALLEST_CURVATURE_STEP} or more, found {delta}: over a "
            f"smaller step the rounding of float32 hides the difference. Leave --delta out for {CURVATURE_STEP}."
        )
    return float(delta)


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
        name = f"channel {channel}, order {order}, delta {delta!r}"
        yield Question(group.name, name, tuple(Probe((channel,), gate) for gate in gates), weights)


def stencil(delta: float, order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The gates that are probed, and the weights of their losses and of the loss with all gates open."""
    if order == 2:
        return (1 - delta, 1 + delta), (1 / delta**2, 1 / delta**2, -2 / delta**2)
    if delta == 1:
        return (0.0,), (1.0, -1.0)
    return (1 - delta, 1 + delta), (0.5 / delta, -0.5 / delta, 0.0)
