"""The search ends on a model that loses too much no more often than it says, and near the smallest that does not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxprune.errors import TargetError
from onnxprune.judging.allowance import allowance
from onnxprune.judging.intervals import Drop, drop_of
from onnxprune.judging.searching import RESOLUTION, Found, smallest

ALLOWED = allowance("1%", "95%")
SAMPLES, RUNS = 500, 1000
SHARES = st.floats(0.06, 0.94)

Rates = Callable[[float], tuple[float, float]]
"""Rates of answers that a model of some share of the MACs loses and gains."""


def barely_bad(share: float) -> tuple[float, float]:
    """All models below 70 % lose just more than the limit: the hardest to tell."""
    return (0.001, 0.001) if share >= 0.7 else (0.02 + 1e-9, 0.01)


def losing_more_and_more(share: float) -> tuple[float, float]:
    """The limit is crossed at about 46 %."""
    return (0.04 * (1 - share) ** 2, 0.003 * (1 - share))


def up_and_down(share: float) -> tuple[float, float]:
    """Every other model is good."""
    return (0.0, 0.0) if int(40 * share) % 2 else (0.01 + 1e-9, 0.0)


def judge_of(rates: Rates, rng: np.random.Generator, *, alike: bool) -> Callable[[float], Drop]:
    """Judges models by share on samples drawn anew; `alike` models err on the same samples."""
    lot = rng.random(SAMPLES)

    def judge(share: float) -> Drop:
        lost, gained = rates(share)
        place = lot if alike else rng.random(SAMPLES)
        return drop_of(1.0 * (place < lost) - 1.0 * (place > 1 - gained), ALLOWED.confidence, "answers")

    return judge


def wrong(found: Found[float] | None, rates: Rates) -> bool:
    """Does the model that was found lose more than is allowed?"""
    lost, gained = rates(found.share) if found else (0.0, 0.0)
    return lost - gained > ALLOWED.limit


def searched(judge: Callable[[float], Drop], rehearse: Callable[[float], float]) -> Found[float] | None:
    try:
        return smallest(float, rehearse, judge, ALLOWED)
    except TargetError:
        return None


@pytest.mark.parametrize("alike", [True, False], ids=["the same samples", "other samples"])
@pytest.mark.parametrize("rates", [barely_bad, losing_more_and_more, up_and_down])
@pytest.mark.parametrize("flattery", [0.0, 0.5, 1.0])
def test_a_bad_model_is_found_no_more_often_than_stated(rates: Rates, alike: bool, flattery: float) -> None:
    """Of a thousand searches at most 5 % end on a model that loses too much, however flattering the rehearsal is."""

    def rehearse(share: float) -> float:
        lost, gained = rates(share)
        return (1 - flattery) * (lost - gained)

    rng = np.random.default_rng(0)
    errors = sum(wrong(searched(judge_of(rates, rng, alike=alike), rehearse), rates) for _ in range(RUNS))
    assert errors / RUNS <= ALLOWED.risk + 2 * np.sqrt(ALLOWED.risk * (1 - ALLOWED.risk) / RUNS)


def test_the_smallest_of_many_that_pass_would_be_bad_more_often() -> None:
    """Why the first failure ends the search: among many models that are barely bad, some pass by luck."""
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(200):
        judge = judge_of(barely_bad, rng, alike=False)
        errors += any(judge(share).upper <= ALLOWED.limit for share in np.linspace(0.1, 0.65, 12))
    assert errors / 200 > 3 * ALLOWED.risk


@given(SHARES, SHARES)
def test_large_steps_cost_no_more_than_the_rehearsal_was_wrong_by(true: float, foretold: float) -> None:
    """Without noise, the model found is within the resolution of the smallest good one, or within that error."""
    assume(foretold <= true)
    found = smallest(float, sharp(foretold), certain(true), ALLOWED)
    reached = min(trial.share for trial in found.trials if trial.expected == 0)
    assert true <= found.share <= max(true + max(RESOLUTION, true - reached), reached) + 1e-9
    assert len(found.trials) <= 13


@given(SHARES)
def test_a_rehearsal_that_is_right_finds_the_smallest(true: float) -> None:
    """To the resolution, in a dozen trials, of which half are judged."""
    found = smallest(float, sharp(true), certain(true), ALLOWED)
    assert true <= found.share <= true + RESOLUTION
    assert sum(trial.drop is not None for trial in found.trials) <= 9


@given(SHARES, SHARES)
def test_trials_are_told_from_large_to_small(true: float, foretold: float) -> None:
    """Those that were judged were accepted, all but the last, and the last accepted is the one found."""
    found = smallest(float, sharp(foretold), certain(true), ALLOWED)
    shares = [trial.share for trial in found.trials]
    judged = [trial for trial in found.trials if trial.drop is not None]
    assert shares == sorted(set(shares), reverse=True)
    assert [trial.accepted for trial in judged[:-1]] == [True] * (len(judged) - 1)
    assert [trial for trial in judged if trial.accepted][-1].share == found.share == found.item


def test_each_model_is_made_once() -> None:
    """Making one is what takes time."""
    made: list[float] = []

    def pruned_to(share: float) -> float:
        made.append(share)
        return share

    smallest(pruned_to, sharp(0.4), certain(0.45), ALLOWED)
    assert len(made) == len(set(made))


def test_shares_that_cannot_be_reached_are_passed_over() -> None:
    """Where a model keeps 60 % at least, the search ends there."""

    def pruned_to(share: float) -> float:
        if share < 0.6:
            raise TargetError("no such plan")
        return share

    found = smallest(pruned_to, sharp(0.0), certain(0.0), ALLOWED)
    assert 0.6 <= found.share <= 0.6 + RESOLUTION
    assert any(trial.expected is None and trial.drop is None for trial in found.trials)


def test_where_nothing_passes_the_trials_are_told() -> None:
    """With their figures and what to do about it."""
    with pytest.raises(TargetError) as failure:
        smallest(float, sharp(0.3), certain(1.0), ALLOWED)
    assert str(failure.value) == (
        "Expected a pruned model with a drop of at most 0.01 at a confidence of 0.95, found none among those that were "
        "judged:\n  - 95.0% of the MACs: a drop of 0.05 on 500 samples, which may be up to 0.06\n"
        "Allow more with --max-drop, judge on more samples with --eval-data, or lower --confidence."
    )


def test_where_there_are_no_models_it_is_told() -> None:
    """A model of which nothing can go."""

    def pruned_to(share: float) -> float:
        raise TargetError("no such plan")

    with pytest.raises(TargetError, match=r"none of 6 shares from 52\.5% to 98\.5% can be had"):
        smallest(pruned_to, sharp(0.3), certain(0.3), ALLOWED)


def sharp(share: float) -> Callable[[float], float]:
    """A rehearsal that foretells that models down to this share pass."""
    return lambda item: 0.0 if item >= share else 0.05


def certain(share: float) -> Callable[[float], Drop]:
    """A judge without doubt: models down to this share pass."""
    return lambda item: (
        Drop(0.0, 0.005, 0.95, SAMPLES, "known") if item >= share else Drop(0.05, 0.06, 0.95, SAMPLES, "known")
    )
