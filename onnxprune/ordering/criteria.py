"""
Criteria: what makes a channel matter.

Each is a function from evidence and groups to scores, of which the lowest go first, with notes for the user; it is
found by its name. A new one is written below, decorated, and named in `probing.sensitivities.Criterion`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from onnxprune.coupling.couple import Group
from onnxprune.errors import UsageError
from onnxprune.ordering.evidence import Evidence, channel_count
from onnxprune.ordering.redundancy import redundancies
from onnxprune.probing import probe, proxies
from onnxprune.probing.losses import Loss, prepare_loss
from onnxprune.probing.sensitivities import Criterion, Sensitivities, sensitivities_of
from onnxprune.repairing.obs import optimal_brain_surgeon

TAYLOR_STEP = 0.004
"""How far a gate moves for a first derivative: float32 shows it well, and the next order is 1e-5 of it."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores, and what a user should know of how they were found."""

    scores: Sensitivities
    notes: tuple[str, ...] = ()


Rank = Callable[[Evidence, Sequence[Group]], Ranking]

CRITERIA: dict[str, Rank] = {}


def criterion(name: Criterion) -> Callable[[Rank], Rank]:
    """Register a criterion."""

    def register(rank: Rank) -> Rank:
        CRITERIA[name] = rank
        return rank

    return register


def check_criterion(name: str) -> None:
    """
    Refuse a name that no criterion has.

    Raises:
        UsageError: see above.
    """
    if name not in get_args(Criterion):
        raise UsageError(f"Expected a criterion among {', '.join(get_args(Criterion))}, found {name!r}.")


@criterion("sensitivity")
def sensitivity(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """What the loss gains when the channel's gate closes: its removal, or a derivative."""
    inquiry = evidence.inquiry(channel_count(groups))
    scores, measured = probe.sensitivities(inquiry, groups, evidence.delta, evidence.order)
    return Ranking(scores, measured.notes)


@criterion("obs")
def obs(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """What the layers that read the channel lose, refitted without it (Hassibi and Stork 1993)."""
    return Ranking(optimal_brain_surgeon(evidence.readings, groups, progress=evidence.progress))


@criterion("magnitude")
def magnitude(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """The norm of the channel's weights (Li et al. 2017)."""
    return Ranking(proxies.magnitudes(evidence.couplings, groups))


@criterion("random")
def chance(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """Nothing: what every criterion must beat."""
    return Ranking(proxies.chances(evidence.couplings, groups, evidence.seed))


@criterion("activation")
def activation(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """
    How much of the channel reaches the layers that read it: root mean square of what it brings times its weights there.

    Source: Hu et al. 2016, Network Trimming, section 3.1 (there how seldom a neuron is zero); with the weights that
    read it, what the channel adds to the next layer.
    """
    readings = evidence.readings
    scores = {}
    for group in groups:
        energies = np.zeros(group.size)
        for reader in readings.readers(group):
            moments = readings.of(reader)
            each = np.diag(moments.gram) * np.square(moments.weights).sum(1) / moments.energy
            energies += [each[block].sum() for block in readings.blocks(group, reader)]
        scores[group.name] = np.sqrt(energies) if readings.readers(group) else np.full(group.size, np.inf)
    return ranked(evidence, scores, "activation", samples=len(readings.samples))


@criterion("taylor")
def taylor(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """
    The channel's value times the loss' derivative by it: what the loss gains to first order when the channel goes.

    Of a distance to the model's own outputs the first derivative is zero, and the second counts.

    Source: Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference, section 2.2;
    the derivative in a gate is the derivative times the value.
    """
    inquiry = evidence.inquiry(channel_count(groups), "auto" if evidence.loss == "distance" else None)
    order, step = (2, probe.CURVATURE_STEP) if inquiry.loss.is_distance else (1, TAYLOR_STEP)
    scores, measured = probe.sensitivities(inquiry, groups, step, order)
    found = {group.name: scores.of(group.name) for group in groups}
    return Ranking(ranked(evidence, found, "taylor", loss=scores.loss, samples=scores.samples).scores, measured.notes)


@criterion("redundancy")
def redundancy(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """
    How much of a channel the other channels of its group cannot stand in for, from 0 (nothing) to 1.

    Greedily: the most redundant goes, and the others are looked at again without it. Of two equal channels one goes
    for nothing.
    """
    scores = {group.name: redundancies(evidence.readings, group) for group in groups}
    return ranked(evidence, scores, "redundancy", samples=len(evidence.readings.samples))


@criterion("forgetting")
def forgetting(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
    """
    The share of the samples whose answer changes when the channel goes: the forgetting rate.

    Raises:
        UsageError: the model gives no answers, that is, classes.
    """
    answers = prepare_loss(evidence.couplings.graph, evidence.calibration, "distance", reference=evidence.outputs)
    if answers.name != "kl":
        raise UsageError(
            "Expected for criterion forgetting a model whose output chooses among classes, found none: no answer can "
            "be forgotten. Take --criterion sensitivity."
        )
    inquiry = evidence.inquiry(channel_count(groups), flips(answers))
    scores, measured = probe.sensitivities(inquiry, groups, 1.0, 1)
    found = {group.name: scores.of(group.name) for group in groups}
    return Ranking(ranked(evidence, found, "forgetting", loss="flips", samples=scores.samples).scores, measured.notes)


def flips(answers: Loss) -> Callable[..., np.ndarray]:
    """A loss: does a sample's answer differ from the original's? The mean over positions where there are several."""
    (output,), axis = answers.outputs, answers.class_axis

    def differ(outputs: Mapping[str, np.ndarray], originals: Mapping[str, np.ndarray], _: object) -> np.ndarray:
        changed = outputs[output].argmax(axis) != originals[output].argmax(axis)
        return np.asarray(changed.reshape(len(changed), -1).mean(1))

    return differ


def ranked(
    evidence: Evidence, scores: Mapping[str, np.ndarray], name: Criterion, *, loss: str = "", samples: int
) -> Ranking:
    """These scores as a ranking by that criterion; where all are infinite, they say nothing, and a note says so."""
    told_apart = any(np.isfinite(values).any() for values in scores.values())
    note = f"Criterion {name} tells no channels apart: no layer that reads any sums in floats. Take sensitivity."
    found = sensitivities_of(evidence.couplings, scores, criterion=name, loss=loss, samples=samples)
    return Ranking(found, () if told_apart else (note,))
