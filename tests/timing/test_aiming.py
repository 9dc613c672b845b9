"""A bound on the latency is met although what predicts it is off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import TargetError
from onnxprune.timing.aiming import MOST_PLANS, NEAR, OVER, in_time

exponents = st.floats(0.6, 1.6)
offsets = st.floats(0.75, 1.3)


def plan_for(step: float, least: float = 5.0) -> object:
    """Plans are predicted latencies, in steps."""

    def plan(aim: float) -> float:
        if aim < least:
            raise TargetError("not that fast")
        return max(least, aim // step * step)

    return plan


@given(st.floats(15, 95), exponents, offsets)
def test_the_bound_is_met_closely(bound: float, exponent: float, offset: float) -> None:
    """Wherever the truth lies about the prediction, as long as it rises with it."""
    true = lambda plan: offset * 100 * (plan / 100) ** exponent  # noqa: E731
    shot = in_time(plan_for(0.05, least=0.1), true, bound, lambda one, other: one == other)  # type: ignore[arg-type]
    assert shot.measured <= bound * (1 + OVER)
    assert shot.measured >= bound * (1 - NEAR) * 0.97


def test_where_nothing_holds_it_the_fastest_is_taken() -> None:
    """Its gap is the caller's to tell."""
    shot = in_time(plan_for(1.0), lambda plan: plan + 40, 30.0, lambda one, other: one == other)  # type: ignore[arg-type]
    assert shot.measured > 30
    assert shot.planned < 12


def test_what_cannot_be_planned_is_refused() -> None:
    """As the model of latency says."""
    with pytest.raises(TargetError):
        in_time(plan_for(1.0), float, 3.0, lambda one, other: one == other)  # type: ignore[arg-type]


def test_a_refusal_says_what_was_measured() -> None:
    """Of the fastest plan that was tried all the same."""
    with pytest.raises(TargetError, match=r"not that fast The fastest plan measured takes 3\d(\.\d)? ms"):
        in_time(plan_for(1.0, least=32.0), float, 30.0, lambda one, other: one == other)  # type: ignore[arg-type]


def test_what_is_faster_than_predicted_is_found() -> None:
    """A plan that is said not to hold the bound may do so all the same."""
    shot = in_time(plan_for(0.5, least=40.0), lambda plan: 0.6 * plan, 30.0, lambda one, other: one == other)  # type: ignore[arg-type]
    assert 29 <= shot.measured <= 30.3


def test_each_plan_is_measured_once_and_not_many() -> None:
    """A coarse ladder of plans comes to an end, below the bound."""
    measured: list[float] = []

    def measure(plan: float) -> float:
        measured.append(plan)
        return plan * 1.1

    shot = in_time(plan_for(20.0), measure, 75.0, lambda one, other: one == other)  # type: ignore[arg-type]
    assert shot.planned == 60.0
    assert len(measured) == len(set(measured)) <= MOST_PLANS
