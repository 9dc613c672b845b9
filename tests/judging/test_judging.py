"""From samples and models to a judgement, on the bundled classifier."""

from __future__ import annotations

import json
import math
from functools import cache

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.choosing.choose import choose
from onnxprune.choosing.targets import Limits, Targets
from onnxprune.errors import DataError, UsageError
from onnxprune.judging.allowance import Allowance, allowance
from onnxprune.judging.judgement import Judge, judge_held_out, judge_on, strata_of
from onnxprune.judging.searching import smallest
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.probing.proxies import magnitudes
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import FIXTURES, bundled, digits
from tests.models import build

NAME = "mlp_torch"
FIVE_PERCENT = allowance("5%", "95%")


def original() -> ModelProto:
    return bundled(NAME).graph.model


def samples(count: int = 1000) -> Calibration:
    return gather(bundled(NAME).graph, dict(digits(NAME, count)))


@cache
def other_digits() -> Calibration:
    with np.load(FIXTURES / "digits" / "test.npz") as archive:
        return gather(bundled(NAME).graph, {name: archive[name] for name in archive.files})


@cache
def pruned_to(share: float) -> ModelProto:
    """The channels of the smallest weights go, without repair."""
    couplings = bundled(NAME)
    scores = magnitudes(couplings, couplings.groups)
    return rewrite(couplings, choose(couplings, scores, Targets(macs=share), Limits()))


def judge(allowed: Allowance = FIVE_PERCENT, metric: str | None = None) -> Judge:
    return judge_held_out(original(), samples(), allowed, metric=metric)


@pytest.mark.parametrize("metric", ["accuracy", "agreement", "top-3", "cosine", "mse"])
def test_the_original_is_judged_to_lose_nothing(metric: str) -> None:
    """Nothing at all in the mean; at most what so few samples can show."""
    found = judge(metric=metric).judgement(original())
    assert found.metric == metric
    assert found.drop.mean == 0
    assert found.original == found.pruned
    assert found.within_limit
    assert found.held_out


def test_a_ruined_model_is_judged_so() -> None:
    """With a twentieth of the MACs and no repair little is left."""
    found = judge().judgement(pruned_to(0.06))
    assert found.original > 0.9 > found.pruned
    assert found.drop.mean == pytest.approx(found.original - found.pruned)
    assert found.drop.upper > found.drop.mean > 0.1
    assert not found.within_limit


def test_the_search_ends_on_a_model_within_the_limit() -> None:
    """On samples that neither pruning nor the judge has seen, it keeps what was shown."""
    judged = judge()
    found = smallest(pruned_to, judged.rehearse, judged.drop, FIVE_PERCENT)
    record = judged.judgement(found.item, found)
    assert record.within_limit
    assert record.drop == found.drop
    assert record.trials == found.trials
    elsewhere = judge_on(original(), samples(100), other_digits(), FIVE_PERCENT).judgement(found.item)
    assert elsewhere.drop.mean <= 0.05
    assert not elsewhere.held_out
    assert found.share < 1


def test_pruning_and_judging_share_no_sample() -> None:
    """And every class of digits is in both, as often as in all."""
    judged = judge()
    assert len(judged.pruning) + len(judged.judging) == 1000
    both = [{array.tobytes() for array in part.arrays["x"]} for part in (judged.pruning, judged.judging)]
    assert not both[0] & both[1]
    shares = [
        np.bincount(part.labels) / len(part) for part in (judged.pruning, judged.judging) if part.labels is not None
    ]
    assert np.abs(shares[0] - shares[1]).max() < 0.02


def test_labels_are_needed_only_where_the_verdict_is() -> None:
    """Without labels for pruning, the rehearsal asks whether answers stay."""
    unlabelled = gather(bundled(NAME).graph, {"x": digits(NAME, 300)["x"]})
    judged = judge_on(original(), unlabelled, samples(), FIVE_PERCENT, metric="accuracy")
    assert (judged.rehearsed_by.name, judged.judged_by.name) == ("agreement", "accuracy")
    with pytest.raises(UsageError, match="found no labels"):
        judge_on(original(), samples(), unlabelled, FIVE_PERCENT, metric="accuracy")


def test_made_up_samples_judge_nothing() -> None:
    """And too few do not either."""
    with pytest.raises(DataError, match="on made-up inputs a drop means nothing"):
        judge_held_out(original(), gather(bundled(NAME).graph, None), FIVE_PERCENT)
    with pytest.raises(DataError, match="Expected at least 118 samples, half of them"):
        judge_held_out(original(), samples(100), FIVE_PERCENT)
    with pytest.raises(DataError, match="Expected at least 59 samples to judge on"):
        judge_on(original(), samples(100), samples(50), FIVE_PERCENT)


def test_it_is_said_where_more_samples_would_help() -> None:
    """Where few answers may be lost, a model has to be better than it needs to."""
    assert list(judge(allowance("1%", "95%")).notes()) == [
        "On 500 samples, a drop of at most 0.01 at a confidence of 0.95 is shown only if at most 1 of the answers are "
        "lost; on 1,182, 6 may be. More samples (--eval-data) allow smaller models."
    ]
    assert not list(judge(FIVE_PERCENT).notes())
    assert not list(judge(allowance("1%", "95%"), "cosine").notes())


def test_models_of_whole_feeds_are_judged_feed_by_feed() -> None:
    """A model without an axis of samples is split and judged like any other."""
    model = build("y = Relu(x[3,4])")
    feeds = np.random.default_rng(0).normal(size=(50, 3, 4)).astype(np.float32)
    judged = judge_held_out(model, gather(read(model), {"x": feeds}), FIVE_PERCENT)
    assert (judged.judged_by.name, len(judged.judging), len(judged.pruning)) == ("cosine", 25, 25)
    assert judged.drop(model).mean == 0


def test_strata_are_labels_or_else_answers() -> None:
    """And nothing where a sample has neither."""
    outputs = {"y": np.eye(3, dtype=np.float32)}
    assert np.array_equal(strata_of(outputs, np.array([2, 2, 1])), [2, 2, 1])  # type: ignore[arg-type]  # not None
    assert np.array_equal(strata_of(outputs, None), [0, 1, 2])  # type: ignore[arg-type]  # not None
    assert strata_of({"y": np.ones((3, 2, 4, 4), np.float32)}, None) is None


def test_a_judgement_is_written_as_json() -> None:
    """With its drop and all trials."""
    judged = judge()
    found = smallest(pruned_to, judged.rehearse, judged.drop, FIVE_PERCENT)
    written = json.loads(judged.judgement(found.item, found).to_json())
    assert written["metric"] == "accuracy"
    assert written["drop"]["samples"] == written["samples"] == len(judged.judging)
    assert len(written["trials"]) == len(found.trials)


def test_a_model_that_gives_nan_has_lost_every_answer() -> None:
    """It is not right by the luck of argmax."""
    judged = judge()
    original = judged.judged_by.known.original
    broken = judged.drop_in({name: np.full_like(values, np.nan) for name, values in original.items()})
    assert broken.mean == judged.judged_by.original().mean()
    assert math.isfinite(broken.upper)
