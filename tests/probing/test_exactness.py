"""What probes promise: closing a gate all the way measures the very loss change of the removal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.calibration import gather
from onnxprune.probing.engine.engine import Engine, Question
from onnxprune.probing.engine.means import Means
from onnxprune.probing.engine.tasks import Probe
from onnxprune.probing.losses import prepare_loss
from onnxprune.probing.probe import probe
from tests.bundled import MODELS, TWINS, bundled, digits
from tests.probing.engines import exact, without
from tests.probing.losses import IN_NUMPY, Outputs, furthest, furthest_mean, outputs_of

SAMPLES = 8
FEW_CHANNELS = 3
TOLERANCE = {"rel": 2e-4, "abs": 2e-5}

CASES = [
    (name, loss)
    for name in MODELS
    for loss in IN_NUMPY
    if (name, loss) != ("unet_torch", "cross-entropy") and (name not in TWINS or loss == "cross-entropy")
]


@cache
def original(name: str) -> Outputs:
    """What the bundled model says of the first digits."""
    return outputs_of(bundled(name).graph.model, digits(name, SAMPLES))


def measured_losses(name: str, loss: str, closed: Sequence[tuple[Group, Sequence[int]]]) -> list[float]:
    """The mean loss with each of these channels closed."""
    couplings = bundled(name)
    calibration = gather(couplings.graph, digits(name, SAMPLES))
    prepared = prepare_loss(couplings.graph, calibration, furthest if loss == "custom" else loss)
    asked = [
        Question(group.name, f"{list(channels)}", (Probe(tuple(channels)),), (1.0, 0.0)) for group, channels in closed
    ]
    form = couplings if all(group.exact for group, _ in closed) else couplings.masked
    with Engine(form, calibration, prepared, Means(jobs=1)) as engine:
        means = {answer.question.key: answer.mean for answer in engine.answers(asked)}
    return [means[one.key] for one in asked]


def rewritten_loss(name: str, loss: str, group: Group, channels: Sequence[int]) -> float:
    """The loss of the model that is really rewritten without these channels."""
    arrays = digits(name, SAMPLES)
    outputs = outputs_of(without(bundled(name), group, channels), arrays)
    return float(np.mean(IN_NUMPY[loss](outputs, original(name), arrays["labels"])))


def a_few(couplings: Couplings) -> list[tuple[Group, list[int]]]:
    """Single channels of every exact group, drawn at random."""
    random, few = np.random.default_rng(0), FEW_CHANNELS if len(couplings.groups) <= 2 else 1
    return [
        (group, [int(channel)])
        for group in exact(couplings)
        for channel in random.choice(group.size, few, replace=False)
    ]


def a_third(couplings: Couplings) -> list[tuple[Group, list[int]]]:
    """A third of the channels of every exact group, drawn at random."""
    random = np.random.default_rng(1)
    return [
        (group, [int(c) for c in random.choice(group.size, group.size // 3, replace=False)])
        for group in exact(couplings)
    ]


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_open_gates_give_the_loss_of_the_original(name: str, loss: str) -> None:
    """A probe that closes nothing measures the original model's loss."""
    (measured,) = measured_losses(name, loss, [(exact(bundled(name))[0], [])])
    expected = float(np.mean(IN_NUMPY[loss](original(name), original(name), digits(name, SAMPLES)["labels"])))
    assert measured == pytest.approx(expected, **TOLERANCE)


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_closed_gates_give_the_loss_of_the_rewritten_model(name: str, loss: str) -> None:
    """In every exact group, closing one channel or many at once changes the loss exactly as removing them does."""
    closed = [*a_few(bundled(name)), *a_third(bundled(name))]
    for (group, channels), measured in zip(closed, measured_losses(name, loss, closed), strict=True):
        assert measured == pytest.approx(rewritten_loss(name, loss, group, channels), **TOLERANCE), (group, channels)


@pytest.mark.parametrize("loss", IN_NUMPY)
@pytest.mark.parametrize("name", ["vit_torchscript", "vit_dynamo"])
def test_in_the_masked_form_gates_of_an_inexact_group_are_removals_too(name: str, loss: str) -> None:
    """Closing channels of a residual stream across LayerNorms changes the loss exactly as removing them does."""
    (stream,) = (group for group in bundled(name).groups if not group.exact)
    random = np.random.default_rng(0)
    counts = (0, 1, stream.size // 3)
    closed = [(stream, np.sort(random.choice(stream.size, count, replace=False)).tolist()) for count in counts]
    for (group, channels), measured in zip(closed, measured_losses(name, loss, closed), strict=True):
        assert measured == pytest.approx(rewritten_loss(name, loss, group, channels), **TOLERANCE), channels


def test_scores_of_an_inexact_group_are_those_of_removals() -> None:
    """Asked for by name or with all that can be proven, an inexact group is probed in the masked form by itself."""
    couplings, arrays = bundled("vit_dynamo"), digits("vit_dynamo", SAMPLES)
    (stream,) = (group for group in couplings.groups if not group.exact)
    scores = probe(couplings, arrays, "cross-entropy", groups=[stream])
    before = rewritten_loss("vit_dynamo", "cross-entropy", stream, [])
    for channel in (0, 13):
        after = rewritten_loss("vit_dynamo", "cross-entropy", stream, [channel])
        assert scores.of(stream.name)[channel] == pytest.approx(after - before, **TOLERANCE)


@pytest.mark.parametrize("name", ["mlp_keras", "resnet_dynamo"])
def test_scores_are_loss_changes_with_their_standard_error(name: str) -> None:
    """A score is the mean over samples of the loss change, its error the deviation over the root of their number."""
    couplings, arrays = bundled(name), digits(name, SAMPLES)
    group = min(exact(couplings), key=lambda group: group.size)
    smaller = outputs_of(without(couplings, group, [2]), arrays)
    changes = [
        IN_NUMPY["cross-entropy"](sample(smaller, n), sample(original(name), n), arrays["labels"][n : n + 1])
        - IN_NUMPY["cross-entropy"](sample(original(name), n), sample(original(name), n), arrays["labels"][n : n + 1])
        for n in range(SAMPLES)
    ]
    (entry,) = probe(couplings, arrays, "cross-entropy", groups=[group]).groups
    assert entry.scores[2] == pytest.approx(np.mean(changes), **TOLERANCE)
    assert entry.stderr[2] == pytest.approx(np.std(changes, ddof=1) / np.sqrt(SAMPLES), **TOLERANCE)


def sample(outputs: Outputs, number: int) -> Outputs:
    """The outputs for one sample."""
    return {name: values[number : number + 1] for name, values in outputs.items()}


@pytest.mark.parametrize("name", MODELS)
def test_many_probes_a_run_measure_what_single_ones_do(name: str) -> None:
    """A probe measures the same beside others as when it is asked alone."""
    group = exact(bundled(name))[-1]
    closed = [(group, [channel]) for channel in range(3)]
    alone = [measured_losses(name, "custom", [one]) for one in closed]
    np.testing.assert_allclose(measured_losses(name, "custom", closed), np.concatenate(alone), rtol=1e-4, atol=1e-6)


def test_a_loss_of_one_number_is_asked_for_each_probe_alone() -> None:
    """A function that returns one number for all samples never sees samples of two probes at once."""
    couplings, arrays = bundled("mlp_torch"), digits("mlp_torch", SAMPLES)
    each, in_all = (probe(couplings, arrays, loss) for loss in (furthest, furthest_mean))
    np.testing.assert_allclose(each.groups[0].scores, in_all.groups[0].scores, rtol=1e-5)
    assert in_all.groups[0].stderr == (0.0,) * 128
