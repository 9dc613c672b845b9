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
from onnxprune.probing.asking import Progress, measured
from onnxprune.probing.calibration import Calibration, Data, gather
from onnxprune.probing.engine import Answer, Question
from onnxprune.probing.losses import Loss, LossName, UserLoss, losses_from, outputs_of, prepare_loss
from onnxprune.probing.means import Means
from onnxprune.probing.running import Probe
from onnxprune.probing.samples import telling_samples
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of
from onnxprune.reading.observing import CPU

PROBE_SAMPLES = 32
"""Samples that probes run on if nothing is said."""


def probe(
    couplings: Couplings,
    data: Data | Calibration | None = None,
    loss: LossName | UserLoss | Loss = "distance",
    *,
    groups: Sequence[Group] | None = None,
    samples: int | None = PROBE_SAMPLES,
    delta: float = 1.0,
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
        groups: which groups to measure; all exact ones by default.
        samples: how many of the samples the loss is averaged over, those on which the model hesitates most; None: all.
        delta: how far a gate closes; 1 is removal, a small number gives derivatives by central differences.
        order: 1, or 2 for the second derivative.
        jobs, memory, threads, provider, executor: what probing may use, as in `Means`.
        cache: folder of the journal that answers are written to as they come and taken from when they are there;
            a loss of the user's own has none.
        progress: called as probing goes on.

    Raises:
        UsageError: delta is not in (0, 1], or the derivative of a distance to the model itself is asked for.
    """
    check_delta(delta)
    means = Means(jobs, memory, threads, provider, executor)
    calibration = gather(couplings.graph, data)
    outputs = outputs_of(couplings.graph.model, calibration, threads=means.threads)
    if not isinstance(loss, Loss):
        loss = prepare_loss(couplings.graph, calibration, loss, reference=outputs)
    if delta < 1 and order == 1 and loss.is_distance:
        raise UsageError(
            f"The derivative of {loss.name} to the model's own outputs is zero at the model itself. "
            "Give labels and --loss cross-entropy for derivatives, or keep --delta 1."
        )
    few = telling_samples(loss, outputs, len(calibration) if samples is None else samples)
    chosen = [group for group in couplings.groups if group.exact] if groups is None else list(groups)
    questions = [question for group in chosen for question in channel_questions(group, delta, order)]
    answers = measured(couplings, calibration.only(few), loss.only(few), questions, means, cache, progress).answers
    by_group: dict[str, list[Answer]] = {group.name: [] for group in chosen}
    for question in questions:
        by_group[question.group].append(answers[question.key])
    return sensitivities_of(
        couplings,
        {name: np.array([answer.mean for answer in found]) for name, found in by_group.items()},
        {name: np.array([answer.error for answer in found]) for name, found in by_group.items()},
        criterion="sensitivity",
        loss=loss.name,
        delta=delta,
        samples=len(few),
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
        name = f"channel {channel}, order {order}, delta {delta!r}"
        yield Question(group.name, name, tuple(Probe((channel,), gate) for gate in gates), weights)


def stencil(delta: float, order: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The gates that are probed, and the weights of their losses and of the loss with all gates open."""
    if order == 2:
        return (1 - delta, 1 + delta), (1 / delta**2, 1 / delta**2, -2 / delta**2)
    if delta == 1:
        return (0.0,), (1.0, -1.0)
    return (1 - delta, 1 + delta), (0.5 / delta, -0.5 / delta, 0.0)
