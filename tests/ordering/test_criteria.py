"""Each criterion is what its definition says, computed here in numpy on a network of one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from scipy.special import log_softmax, softmax

from onnxprune.coupling.couple import Group, couple
from onnxprune.errors import UsageError
from onnxprune.ordering.criteria import CRITERIA, Ranking, criterion, ranked
from onnxprune.ordering.evidence import Evidence
from onnxprune.pipeline import prune
from onnxprune.probing.asking import Effort
from onnxprune.probing.calibration import gather
from onnxprune.probing.engine.means import Means
from onnxprune.probing.losses import outputs_of
from onnxprune.probing.sensitivities import LOSSES, Criterion
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from tests.models import build

HIDDEN, SAMPLES = 12, 200
NETWORK = f"h = Gemm(x[N,6], w1[6,{HIDDEN}], b1[{HIDDEN}])\n a = Relu(h)\n y = Gemm(a, w2[{HIDDEN},4], b2[4])"
NAMES = [name for name in get_args(Criterion) if name != "auto"]


@cache
def samples() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((SAMPLES, 6)).astype(np.float32)


@cache
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4, SAMPLES)


@cache
def weights() -> dict[str, np.ndarray]:
    """Of the network, in float64."""
    return {tensor.name: numpy_helper.to_array(tensor).astype(float) for tensor in build(NETWORK).graph.initializer}


def hidden() -> np.ndarray:
    """What the second layer reads, `[samples, channels]`."""
    return np.maximum(samples() @ weights()["w1"] + weights()["b1"], 0)


def logits(gates: np.ndarray | None = None) -> np.ndarray:
    """The outputs, with hidden channels multiplied by gates."""
    open_gates = np.ones(HIDDEN) if gates is None else gates
    return np.asarray((hidden() * open_gates) @ weights()["w2"] + weights()["b2"])


def without(channel: int) -> np.ndarray:
    """The outputs when a channel is gone."""
    return logits(np.where(np.arange(HIDDEN) == channel, 0.0, 1.0))


def evidence(model: ModelProto | None = None, *, labelled: bool = False, **options: Any) -> Evidence:
    """All samples, one process."""
    couplings = couple(read(model or build(NETWORK)))
    arrays = {"x": samples()} | ({"labels": labels()} if labelled else {})
    calibration = gather(couplings.graph, arrays)
    outputs = outputs_of(couplings.graph.model, calibration)
    return Evidence(couplings, calibration, outputs, effort=Effort("all", Means(jobs=1)), **options)


def scores(name: str, given: Evidence | None = None) -> np.ndarray:
    """Of the first group's channels."""
    given = given or evidence()
    return CRITERIA[name](given, given.couplings.groups).scores.of(given.couplings.groups[0].name)


def with_weights(model: ModelProto, **changed: np.ndarray) -> ModelProto:
    """The model with other numbers."""
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    return model


# All of them


def test_every_criterion_is_registered() -> None:
    """What a user may name, but for "auto", which is a choice among them."""
    assert set(CRITERIA) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_ranking_says_what_it_is(name: str) -> None:
    """Every group, every channel, a finite score; whether it is a loss; and the same again the next time."""
    found, again = (CRITERIA[name](given, given.couplings.groups).scores for given in (evidence(), evidence()))
    assert found.criterion == name
    assert found.are_losses == (name in LOSSES)
    assert [(entry.name, len(entry.scores)) for entry in found.groups] == [("h", HIDDEN)]
    assert np.isfinite(found.of("h")).all()
    assert np.ptp(found.of("h")) > 0
    assert found == again


def test_a_criterion_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorated, it decides what goes."""
    monkeypatch.setitem(CRITERIA, "random", CRITERIA["random"])  # so that it is put back

    @criterion("random")
    def the_first_matter(evidence: Evidence, groups: Sequence[Group]) -> Ranking:
        found = {group.name: np.arange(group.size)[::-1] for group in groups}
        return ranked(evidence, found, "random", samples=0)

    result = prune(build(NETWORK), samples(), ratio=0.5, criterion="random")
    assert result.plan.groups[0].kept == tuple(range(HIDDEN // 2))


# One by one


def test_sensitivity_is_what_the_loss_gains() -> None:
    """KL from the model's own answers, with the channel's term gone."""
    expected = [kl(without(channel)).mean() for channel in range(HIDDEN)]
    np.testing.assert_allclose(scores("sensitivity"), expected, rtol=1e-3, atol=1e-6)


def kl(changed: np.ndarray) -> np.ndarray:
    """From the original's classes, for each sample."""
    return np.asarray((softmax(logits(), 1) * (log_softmax(logits(), 1) - log_softmax(changed, 1))).sum(1))


def test_magnitude_is_the_norm_of_the_weights() -> None:
    """Those that make the channel, its bias, and those that read it."""
    squares = np.square(weights()["w1"]).sum(0) + np.square(weights()["b1"]) + np.square(weights()["w2"]).sum(1)
    np.testing.assert_allclose(scores("magnitude"), np.sqrt(squares), rtol=1e-6)


def test_activation_is_what_reaches_the_next_layer() -> None:
    """Root mean square of the channel times its weights there, over that of the whole layer."""
    each = np.square(hidden()).mean(0) * np.square(weights()["w2"]).sum(1)
    whole = np.square(logits() - weights()["b2"]).sum(1).mean()
    np.testing.assert_allclose(scores("activation"), np.sqrt(each / whole), rtol=0.01, atol=0.005)


def test_taylor_is_value_times_derivative() -> None:
    """Of the cross-entropy, where there are labels: what it gains to first order when the channel goes."""
    error = softmax(logits(), 1) - np.eye(4)[labels()]
    expected = -(error[:, None, :] * hidden()[:, :, None] * weights()["w2"]).sum(2).mean(0)
    found = scores("taylor", evidence(labelled=True))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_taylor_takes_the_second_derivative_without_labels() -> None:
    """Of KL to the model itself, whose first is zero: the Fisher information in what the channel adds."""
    added, classes = hidden()[:, :, None] * weights()["w2"], softmax(logits(), 1)[:, None, :]
    expected = ((classes * added**2).sum(2) - (classes * added).sum(2) ** 2).mean(0)
    np.testing.assert_allclose(scores("taylor"), expected, rtol=0.05, atol=1e-3)


def test_forgetting_is_the_share_of_answers_that_change() -> None:
    """By really leaving each channel out."""
    answers = logits().argmax(1)
    expected = [(without(channel).argmax(1) != answers).mean() for channel in range(HIDDEN)]
    np.testing.assert_allclose(scores("forgetting"), expected, atol=1e-9)
    assert max(expected) > 0.1


def test_forgetting_counts_against_the_original() -> None:
    """Also where the model that is probed is another one: its answers already differ."""
    given = evidence()
    other = {"y": -given.outputs["y"]}
    changed = Evidence(given.couplings, given.calibration, other, effort=given.effort)
    answers, now = other["y"].argmax(1), [without(channel).argmax(1) for channel in range(HIDDEN)]
    already = (logits().argmax(1) != answers).mean()
    expected = [(one != answers).mean() - already for one in now]
    np.testing.assert_allclose(scores("forgetting", changed), expected, atol=1e-9)


def test_forgetting_needs_answers() -> None:
    """An image is none."""
    couplings = couple(read(build("a = Conv(x[N,1,4,4], w1[6,1,1,1])\n b = Relu(a)\n y = Conv(b, w2[2,6,1,1])")))
    calibration = gather(couplings.graph, np.arange(128, dtype=np.float32).reshape(8, 1, 4, 4))
    given = Evidence(couplings, calibration, outputs_of(couplings.graph.model, calibration))
    with pytest.raises(UsageError, match="a model whose output chooses among classes, found none: no answer can be"):
        CRITERIA["forgetting"](given, couplings.groups)


def test_random_follows_the_seed() -> None:
    """Another seed, another order."""
    orders = [tuple(np.argsort(scores("random", evidence(seed=seed)))) for seed in range(5)]
    assert len(set(orders)) == 5


# Redundancy


def left_over(channel: int, others: Sequence[int]) -> float:
    """By least squares: the share of a channel's energy that the others and a constant cannot reconstruct."""
    known = np.hstack([hidden()[:, list(others)], np.ones((SAMPLES, 1))])
    rest = hidden()[:, channel] - known @ np.linalg.lstsq(known, hidden()[:, channel], rcond=None)[0]
    return float(np.square(rest).mean() / np.square(hidden()[:, channel]).mean())


def test_redundancy_is_what_others_cannot_say() -> None:
    """The most redundant goes first, and what is left is asked again without it, by brute force."""
    found, left = scores("redundancy"), list(range(HIDDEN))
    order = np.argsort(found)
    for channel in order[:6]:
        shares = {one: left_over(one, [other for other in left if other != one]) for one in left}
        assert shares[channel] == pytest.approx(min(shares.values()), rel=0.05, abs=0.002)
        assert found[channel] >= 0.95 * shares[channel]
        left.remove(channel)
    assert found[order[0]] == pytest.approx(left_over(order[0], order[1:]), rel=0.05, abs=0.002)
    assert ((found > 0) & (found <= 1)).all()


def of_pairs() -> ModelProto:
    """Of twelve hidden channels, the last six make what the first six make; other layers read each with its own."""
    changed = {name: np.array(weights()[name]) for name in ("w1", "b1")}
    for array in changed.values():
        array[..., 6:] = array[..., :6]
    return with_weights(build(NETWORK), **changed)


def test_one_of_two_equal_channels_goes_for_nothing() -> None:
    """And the other does not, once it is alone."""
    found = scores("redundancy", evidence(of_pairs()))
    cheap = np.argsort(found)[:6]
    assert set(cheap % 6) == set(range(6))
    assert found[cheap].max() < 0.1 * np.delete(found, cheap).min()


def test_silent_channels_go_first() -> None:
    """One that never says anything, however many others there are; then one that hardly does, as its pair says it."""
    model = of_pairs()
    made = {tensor.name: numpy_helper.to_array(tensor).astype(float) for tensor in model.graph.initializer}
    made["w1"][:, [3, 9]], made["b1"][[3, 9]] = 0, [-1, -2]
    made["w1"][:, [4, 10]] *= 1e-4
    made["b1"][[4, 10]] *= 1e-4
    found = scores("redundancy", evidence(with_weights(model, w1=made["w1"], b1=made["b1"])))
    order = np.argsort(found).tolist()
    assert set(order[:2]) == {3, 9}
    assert found[[3, 9]].max() < 1e-9
    assert len({4, 10} & set(order[:7])) == 1


def test_a_channel_that_others_add_up_to_is_redundant() -> None:
    """Without a Relu in between, one column of weights may be a sum of others: one of these goes for nothing."""
    model = build(NETWORK.replace("Relu", "Identity").replace("w1[6,12]", "w1[6,5]").replace("[12", "[5"))
    made = {tensor.name: numpy_helper.to_array(tensor).astype(float) for tensor in model.graph.initializer}
    for name in ("w1", "b1"):
        made[name][..., 4] = made[name][..., 0] - 2 * made[name][..., 3]
    found = np.sort(scores("redundancy", evidence(with_weights(model, w1=made["w1"], b1=made["b1"]))))
    assert found[0] < 0.05 * found[1]


def test_without_duplicates_the_answers_stay() -> None:
    """Refitted, the layer behind does with six channels what it did with twelve."""
    model = of_pairs()
    result = prune(model, samples(), ratio=0.5, criterion="redundancy", compensate=True)
    before, after = (session_for(one).run(None, {"x": samples()})[0] for one in (model, result.model))
    assert len(result.plan.groups[0].kept) == 6
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("name", ["activation", "redundancy"])
def test_groups_that_no_layer_reads_go_last(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known to be useless is not touched first."""
    given = evidence()
    monkeypatch.setattr(given.readings, "readers", lambda group: ())
    assert (scores(name, given) == np.finfo(np.float32).max).all()
