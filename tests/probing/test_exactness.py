"""What probes promise: closing a gate all the way measures the very loss change of the removal."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import gather
from onnxprune.probing.losses import prepare_loss
from onnxprune.probing.probe import Probe, Runner, probe
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import MODELS, bundled, digits
from tests.probing.losses import IN_NUMPY, furthest, outputs_of

SAMPLES = 8
FEW_CHANNELS = 3
TOLERANCE = {"rel": 2e-4, "abs": 2e-5}

ONE_PROBE_A_RUN = ("gru_torch", "lstm_torch", "lstm_keras", "mlp_sklearn")
"""Their gates sit in weights, or behind an operator without a rule, where samples cannot be told apart."""

CASES = [(name, loss) for name in MODELS for loss in IN_NUMPY if (name, loss) != ("unet_torch", "cross-entropy")]


@cache
def runner_of(name: str, loss: str) -> Runner:
    """The probing model with the gates of all exact groups."""
    couplings = bundled(name)
    calibration = gather(couplings.graph, digits(name, SAMPLES))
    prepared = prepare_loss(couplings.graph, calibration, furthest if loss == "custom" else loss)
    dims = [dim for group in couplings.groups if group.exact for dim in group.dims]
    return Runner(couplings, calibration, prepared, dims, 1)


def closing(couplings: Couplings, removed: dict[str, list[int]]) -> Probe:
    """The gates of these channels closed, all others open."""
    closed = {}
    for name, channels in removed.items():
        group = couplings.group(name)
        kept = group.per_dim(np.setdiff1d(np.arange(group.size), channels))
        closed |= {dim: np.isin(np.arange(dim.size), stay).astype(float) for dim, stay in kept.items()}
    return Probe(closed)


def loss_without(name: str, loss: str, removed: dict[str, list[int]]) -> float:
    """The loss of the model that is really rewritten without these channels."""
    couplings, arrays = bundled(name), digits(name, SAMPLES)
    kept = {
        group: np.setdiff1d(np.arange(couplings.group(group).size), channels) for group, channels in removed.items()
    }
    smaller = rewrite(couplings, plan_of(couplings, kept))
    original = outputs_of(couplings.graph.model, arrays)
    return float(np.mean(IN_NUMPY[loss](outputs_of(smaller, arrays), original, arrays["labels"])))


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_open_gates_give_the_loss_of_the_original(name: str, loss: str) -> None:
    """With all gates at one the probing model's loss is the original model's."""
    measured = runner_of(name, loss).losses([Probe({})]).mean()
    assert measured == pytest.approx(loss_without(name, loss, {}), **TOLERANCE)


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_a_closed_gate_gives_the_loss_of_the_rewritten_model(name: str, loss: str) -> None:
    """In every exact group, closing a channel's gate changes the loss exactly as removing the channel does."""
    couplings, random = bundled(name), np.random.default_rng(0)
    few = FEW_CHANNELS if len(couplings.groups) <= 2 else 1
    for group in (group for group in couplings.groups if group.exact):
        for channel in random.choice(group.size, few, replace=False):
            removed = {group.name: [int(channel)]}
            measured = runner_of(name, loss).losses([closing(couplings, removed)]).mean()
            assert measured == pytest.approx(loss_without(name, loss, removed), **TOLERANCE), removed


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_several_closed_gates_give_the_loss_of_the_rewritten_model(name: str, loss: str) -> None:
    """A third of the channels of all exact groups closed at once changes the loss exactly as removing them does."""
    couplings, random = bundled(name), np.random.default_rng(1)
    removed = {
        group.name: [int(c) for c in random.choice(group.size, group.size // 3, replace=False)]
        for group in couplings.groups
        if group.exact
    }
    measured = runner_of(name, loss).losses([closing(couplings, removed)]).mean()
    assert measured == pytest.approx(loss_without(name, loss, removed), **TOLERANCE)


@pytest.mark.parametrize("name", ["mlp_keras", "resnet_dynamo"])
def test_scores_are_loss_changes_with_their_standard_error(name: str) -> None:
    """A score is the mean over samples of the loss change, its error the deviation over the root of their number."""
    couplings, runner = bundled(name), runner_of(name, "cross-entropy")
    group = min((group for group in couplings.groups if group.exact), key=lambda group: group.size)
    scores = probe(couplings, digits(name, SAMPLES), "cross-entropy", groups=[group])
    whole, without = runner.losses([Probe({}), closing(couplings, {group.name: [2]})])
    (entry,) = scores.groups
    assert entry.scores[2] == pytest.approx((without - whole).mean(), **TOLERANCE)
    assert entry.stderr[2] == pytest.approx((without - whole).std(ddof=1) / np.sqrt(SAMPLES), **TOLERANCE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", ["mse", "custom"])
def test_many_probes_a_run_measure_what_single_ones_do(name: str, loss: str) -> None:
    """Probes that share a run do not disturb each other."""
    couplings, runner = bundled(name), runner_of(name, loss)
    probes = [closing(couplings, {group.name: [0]}) for group in couplings.groups if group.exact]
    alone = np.concatenate([runner.losses([probe]) for probe in probes])
    together = runner.losses([Probe({}), *probes])[1:]
    assert runner.many_a_run == (name not in ONE_PROBE_A_RUN)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_a_loss_of_one_number_is_asked_for_each_probe_alone() -> None:
    """A function that returns one number for all samples never sees samples of two probes at once."""
    couplings, arrays = bundled("mlp_torch"), digits("mlp_torch", SAMPLES)
    each = probe(couplings, arrays, furthest)
    in_all = probe(couplings, arrays, lambda *seen: float(furthest(*seen).mean()))
    np.testing.assert_allclose(each.groups[0].scores, in_all.groups[0].scores, rtol=1e-5)
