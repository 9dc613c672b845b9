"""How fast groups get narrower beside each other: as evenly as is fast, on machines that are made up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.choosing.targets import Targets
from onnxprune.coupling.costs import Polynomial, Stair, Staircase, Term
from onnxprune.coupling.couple import Couplings
from onnxprune.timing.pacing import GAIN, IN_STEP, LESS_EVENLY, Pacing, Share, even_narrowing, narrowed
from tests.choosing.graphs import three_layers

shares = st.floats(0.2, 0.9)
LEAST = min(part for _, part in LESS_EVENLY)


def bound_by_memory(couplings: Couplings, moved: float) -> Staircase:
    """Time in part as the multiplications, and for the rest as the channels of the stem."""
    macs = couplings.costs.macs
    each = moved * macs.at({}) / couplings.groups[0].size
    stem = Term("stem", each, (couplings.groups[0].dims[0],))
    return Staircase((Stair(Polynomial((*macs.terms, stem)), {}),))


@given(shares, st.floats(0.0, 3.0), st.sampled_from(["macs", "latency"]))
def test_what_is_bounded_is_what_it_may_be(share: float, moved: float, bounded: str) -> None:
    """And the other cost is no worse than at even shares, no group below its part of the even share."""
    couplings = three_layers()
    macs = Share.of(couplings.costs.macs, couplings.groups)
    time = Share.of(bound_by_memory(couplings, moved), couplings.groups)
    held, free = (macs, time) if bounded == "macs" else (time, macs)
    even, found = even_narrowing(held, share), narrowed(macs, time, bounded, share)
    if even is None:
        assert found is None
        return
    assert found is not None
    assert held.at(found) == pytest.approx(share, rel=1e-3)
    better = 1 if bounded == "macs" else -1
    assert better * free.at(found) <= better * free.at(even) + 1e-6
    assert (found >= even + np.log(LEAST) - 1e-6).all()
    assert (found <= 0).all()


@given(shares)
def test_groups_keep_even_shares_where_time_follows_the_multiplications(share: float) -> None:
    """Nothing is gained by another way."""
    couplings = three_layers()
    pacing = Pacing(couplings, couplings.groups, lambda: bound_by_memory(couplings, 0.0))
    assert pacing.paces(Targets(macs=share)) == pytest.approx(dict.fromkeys(pacing.paces(Targets(macs=share)), 1.0))


@given(st.floats(0.3, 0.8))
def test_time_keeps_up_or_all_that_is_less_even_gains_little(share: float) -> None:
    """The first that is near enough is taken; the group that time hangs on is the fastest then."""
    couplings = three_layers()
    latency = bound_by_memory(couplings, 1.0)
    macs, time = Share.of(couplings.costs.macs, couplings.groups), Share.of(latency, couplings.groups)
    found, even = narrowed(macs, time, "macs", share), even_narrowing(macs, share)
    assert found is not None
    assert even is not None
    assert time.at(even) - share > IN_STEP
    behind, before = (time.at(logs) - macs.at(logs) for logs in (found, even))
    assert behind < before - GAIN or found == pytest.approx(even)
    paces = Pacing(couplings, couplings.groups, lambda: latency).paces(Targets(macs=share))
    assert max(paces, key=lambda name: paces[name]) == couplings.groups[0].name


def test_only_bounds_on_costs_that_time_goes_with_have_paces() -> None:
    """Parameters say nothing of time, and the latency is not even measured for them; nor where nothing is to go."""
    couplings = three_layers()

    def never() -> Staircase:
        raise AssertionError("measured")

    pacing = Pacing(couplings, couplings.groups, never)
    assert pacing.paces(Targets(params=0.5)) == {}
    assert pacing.paces(Targets(ratio=0.5)) == {}
    assert pacing.paces(Targets(macs=1.0)) == {}
