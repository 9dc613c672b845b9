"""Samples are held out fairly, repeatably, and only where there are enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import DataError
from onnxprune.judging.allowance import allowance
from onnxprune.judging.holding_out import hold_out, require_enough
from onnxprune.probing.calibration import Calibration

ONE_PERCENT = allowance("1%", "95%")
TWENTY_PERCENT = allowance("20%", "90%")


def numbered(count: int, *, stacked: bool = False) -> Calibration:
    """Samples that carry their number."""
    numbers = np.arange(count, dtype=np.float32).reshape(-1, 1, 1)
    return Calibration({"x": numbers}, np.arange(count) % 7, False, None, ("y",), stacked)


@given(st.integers(30, 3000), st.integers(0, 5), st.booleans())
def test_every_sample_is_in_exactly_one_part(count: int, seed: int, stacked: bool) -> None:
    """The parts are a partition, whatever a sample is."""
    halves = hold_out(numbered(count, stacked=stacked), TWENTY_PERCENT, "answers", seed=seed)
    together = np.concatenate([halves.pruning.arrays["x"], halves.judging.arrays["x"]]).ravel()
    assert sorted(together) == list(range(count))
    assert np.array_equal(halves.judging.arrays["x"].ravel(), halves.held_out)
    assert np.array_equal(halves.pruning.arrays["x"].ravel(), halves.rows)
    assert halves.judging.stacked == stacked
    assert len(halves.judging) <= len(halves.pruning)


@given(st.lists(st.integers(0, 4), min_size=40, max_size=200), st.integers(0, 5))
def test_each_class_is_split_like_all_samples(classes: list[int], seed: int) -> None:
    """No class is short by more than a sample."""
    strata = np.array(classes)
    halves = hold_out(numbered(len(strata)), TWENTY_PERCENT, "answers", strata=strata, seed=seed)
    share = len(halves.held_out) / len(strata)
    for stratum in np.unique(strata):
        wanted = share * (strata == stratum).sum()
        assert abs((strata[halves.held_out] == stratum).sum() - wanted) < 2


def test_the_seed_decides() -> None:
    """The same seed holds out the same samples, another seed others."""
    first, again, other = (hold_out(numbered(700), ONE_PERCENT, "losses", seed=seed).held_out for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("count", "kind", "held_out"),
    [(598, "answers", 299), (1000, "answers", 500), (10_000, "answers", 1182), (300, "numbers", 150)],
)
def test_as_many_are_held_out_as_it_takes(count: int, kind: str, held_out: int) -> None:
    """Half of few; of many, enough for six answers to be lost."""
    assert len(hold_out(numbered(count), ONE_PERCENT, kind).judging) == held_out  # type: ignore[arg-type]  # a kind


def test_the_share_can_be_given() -> None:
    """Then it is taken as it is."""
    assert len(hold_out(numbered(2000), ONE_PERCENT, "answers", share=0.8).judging) == 1600


def test_too_few_samples_are_refused_with_advice() -> None:
    """The message says how many it takes, and what else could be asked."""
    with pytest.raises(DataError) as failure:
        hold_out(numbered(400), ONE_PERCENT, "answers")
    assert str(failure.value) == (
        "Expected at least 598 samples, half of them to show a drop of at most 0.01 at a confidence of 0.95 on, found "
        "400. Pass more, or judge on others with --eval-data. On 200 a loss of at most 1.5% can be shown: allow it "
        "with --max-drop, or lower --confidence."
    )
    with pytest.raises(DataError, match="at least 40 samples"):
        hold_out(numbered(30), ONE_PERCENT, "numbers")


def test_too_few_samples_of_ones_own_are_refused_as_well() -> None:
    """298 cannot show what 299 can."""
    require_enough(299, ONE_PERCENT, "losses")
    with pytest.raises(DataError, match=r"Expected at least 299 samples to judge on, .* found 298. Pass more."):
        require_enough(298, ONE_PERCENT, "losses")
