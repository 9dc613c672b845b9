"""A bound holds as often as it says, and moves the way that sense demands."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, multinomial  # type: ignore[import-untyped]  # scipy brings no types

from onnxprune.judging.exact import upper_difference, upper_rate
from onnxprune.judging.intervals import Kind, drop_of, expected_upper, fewest_samples

RISK = 0.05
ROUNDING = 1e-9
COUNTS = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(14, 40))
ANSWERS = st.lists(st.sampled_from([-1, 0, 0, 0, 1]), min_size=1, max_size=30)


def differences(lost: int, gained: int, samples: int) -> np.ndarray:
    """What each sample lost, where so many answers were lost and gained."""
    return np.repeat([1.0, -1.0, 0.0], [lost, gained, samples - lost - gained])


@pytest.mark.parametrize("samples", [1, 7, 60])
def test_losses_alone_are_bounded_at_the_stated_rate(samples: int) -> None:
    """Whatever the true rate of losses, the chance of a bound below it is 5 % at most."""
    bounds = np.array([upper_rate(lost, samples, RISK) for lost in range(samples + 1)])
    for rate in np.linspace(0.001, 0.999, 200):
        chances = binom.pmf(np.arange(samples + 1), samples, rate)
        assert chances[bounds < rate].sum() <= RISK + 1e-12


@pytest.mark.parametrize("risk", [0.05, 0.2])
@pytest.mark.parametrize("samples", [1, 4, 13, pytest.param(40, marks=pytest.mark.slow)])
def test_losses_and_gains_are_bounded_at_the_stated_rate(samples: int, risk: float) -> None:
    """Over all outcomes there are: for any rates of losses and gains, a bound below their difference is rare enough."""
    outcomes = [(lost, gained) for lost in range(samples + 1) for gained in range(samples + 1 - lost)]
    bounds = np.array([upper_difference(lost, gained, samples, risk) for lost, gained in outcomes])
    table = np.array([(lost, gained, samples - lost - gained) for lost, gained in outcomes])
    rates = np.linspace(0.0, 1.0, 31)
    for loss in rates:
        for gain in rates[rates <= 1 - loss + 1e-9]:
            same = max(0.0, 1 - loss - gain)
            chances = multinomial.pmf(table, samples, [loss, gain, same])
            assert chances[bounds < loss - gain - 1e-9].sum() <= risk + 1e-9


@given(COUNTS)
def test_one_more_loss_never_tightens_and_one_more_gain_never_loosens(counts: tuple[int, int, int]) -> None:
    """The bound knows what is good and what is bad."""
    lost, gained, samples = counts
    bound = upper_difference(lost, gained, samples, RISK)
    assert upper_difference(lost + 1, gained, samples, RISK) >= bound - ROUNDING
    assert upper_difference(lost, gained + 1, samples, RISK) <= bound + ROUNDING


@settings(max_examples=40)
@given(COUNTS, st.integers(2, 4))
def test_more_samples_never_loosen_the_bound_at_equal_rates(counts: tuple[int, int, int], times: int) -> None:
    """The same rates on more samples say more."""
    lost, gained, samples = counts
    more = (times * lost, times * gained, times * samples)
    assert upper_difference(*more, RISK) <= upper_difference(lost, gained, samples, RISK) + ROUNDING
    assert upper_rate(more[0], more[2], RISK) <= upper_rate(lost, samples, RISK)


@given(COUNTS)
def test_the_bound_lies_above_what_was_seen(counts: tuple[int, int, int]) -> None:
    """At 95 % the true drop may well be larger than the one measured, so the bound is larger."""
    lost, gained, samples = counts
    assert (lost - gained) / samples < upper_difference(lost, gained, samples, RISK) <= 1


def test_without_gains_both_bounds_are_about_the_same() -> None:
    """That gains were possible costs next to nothing where none happened."""
    for lost in range(5):
        assert upper_difference(lost, 0, 500, RISK) == pytest.approx(upper_rate(lost, 500, RISK), rel=1e-4)


def test_gains_count() -> None:
    """A model that errs in other places, about as often, has lost little; its losses alone would say 3.6 %."""
    assert upper_difference(160, 150, 5000, RISK) < 0.008
    assert upper_rate(160, 5000, RISK) > 0.036


@given(ANSWERS, st.randoms(use_true_random=False), st.sampled_from(["answers", "losses", "numbers"]))
def test_the_order_of_samples_does_not_matter(answers: list[int], random: object, kind: Kind) -> None:
    """A shuffled set of samples gives the very same drop."""
    lost = np.abs(answers) if kind == "losses" else np.array(answers)
    shuffled = np.array(lost)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a Random without a type
    assert drop_of(shuffled, 0.95, kind) == drop_of(lost, 0.95, kind)


@given(ANSWERS, st.sampled_from([0.6, 0.8, 0.9, 0.99]))
def test_more_confidence_never_tightens_the_bound(answers: list[int], confidence: float) -> None:
    """Who wants to be surer gets a higher bound."""
    found = [drop_of(np.array(answers), sure, "answers").upper for sure in (confidence, 0.995)]
    assert found[0] <= found[1] + ROUNDING


@pytest.mark.parametrize("draw", [np.random.Generator.standard_normal, np.random.Generator.standard_exponential])
def test_the_bootstrap_bounds_about_as_often_as_it_says(draw: object) -> None:
    """Of numbers with a short and with a long tail, the bound holds in about 95 of 100 cases."""
    rng, mean = np.random.default_rng(0), float(draw is np.random.Generator.standard_exponential)
    bounds = np.array([drop_of(draw(rng, 50), 0.95).upper for _ in range(100)])  # type: ignore[operator]  # a method
    assert 0.88 <= (bounds >= mean).mean() < 1


def test_numbers_that_are_all_the_same_bound_themselves() -> None:
    """Where nothing varies there is nothing to resample: the drop is what every sample says, never NaN."""
    found = drop_of(np.full(40, 0.1), 0.95)
    assert found.mean == pytest.approx(0.1)
    assert found.upper == pytest.approx(0.1)
    assert found.method == "every sample lost the same"


def test_a_figure_that_is_no_number_has_no_bound() -> None:
    """A model that gives NaN on one sample passes at no limit."""
    found = drop_of(np.array([0.0] * 50 + [np.nan]), 0.95)
    assert (found.mean, found.upper) == (math.inf, math.inf)
    assert "not finite" in found.method


def test_halves_of_answers_are_numbers() -> None:
    """A metric that promised right or wrong and says 0.5 is not counted in answers."""
    assert "bootstrap" in drop_of(np.array([0.0, 0.5, 0.0, 0.0]), 0.95, "answers").method


@given(st.floats(0.002, 0.3), st.floats(0.6, 0.99), st.sampled_from(["answers", "losses"]))
def test_fewest_samples_are_enough_and_one_less_is_not(limit: float, confidence: float, kind: Kind) -> None:
    """With no answer lost, so many samples show the limit."""
    fewest = fewest_samples(limit, confidence, kind)
    assert drop_of(differences(0, 0, fewest), confidence, kind).upper <= limit * (1 + 1e-6)
    assert fewest == 1 or upper_rate(0, fewest - 1, 1 - confidence) > limit * (1 - 1e-3)


def test_one_percent_at_95_percent_needs_299_samples() -> None:
    """The number of every textbook; 473 if one answer is lost."""
    assert fewest_samples(0.01, 0.95, "losses") == fewest_samples(0.01, 0.95, "answers") == 299
    assert fewest_samples(0.01, 0.95, "losses", lost=1) == 473


@pytest.mark.parametrize("kind", ["losses", "answers", "numbers"])
def test_what_is_expected_is_about_what_is_found(kind: Kind) -> None:
    """The rehearsal foretells the bound on as many samples of the same kind."""
    lost = differences(12, 0 if kind == "losses" else 6, 600)
    assert expected_upper(lost, 0.95, kind, 600) == pytest.approx(drop_of(lost, 0.95, kind).upper, rel=0.1)
    assert expected_upper(lost, 0.95, kind, 6000) < expected_upper(lost, 0.95, kind, 300)
    assert expected_upper(np.array([np.nan]), 0.95, kind, 300) == math.inf
