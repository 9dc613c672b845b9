"""Meet a bound on the latency: plan by the model of latency, measure what came of it, aim again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnxprune.errors import TargetError

MOST_PLANS = 8
"""That are measured, at most."""

NEAR = 0.03
"""A plan that is faster than the bound by no more than this share is near enough."""

OVER = 0.01
"""A plan that is slower than the bound by no more than this share holds it: repeated timings differ by more."""

MORE = 0.1
"""By this share the bound on the predicted latency is raised as long as no plan is said to hold it."""

Planned = TypeVar("Planned")


@dataclass(frozen=True)
class Shot(Generic[Planned]):
    """A plan for the latency `aimed` at, and what was measured of it."""

    planned: Planned
    aimed: float
    measured: float


def in_time(
    plan_for: Callable[[float], Planned],
    measured: Callable[[Planned], float],
    bound: float,
    same: Callable[[Planned, Planned], bool],
) -> Shot[Planned]:
    """
    The plan whose measured latency comes nearest to the bound from below; where none holds it, the fastest.

    Raises:
        TargetError: no plan is that fast, as predicted, and one that is nearly so was measured, too.
    """
    shots: list[Shot[Planned]] = []
    aim, refusal = bound, None
    for _ in range(MOST_PLANS):
        try:
            planned = plan_for(aim)
        except TargetError as unreachable:
            if shots:
                break
            refusal = refusal or unreachable
            aim *= 1 + MORE
            continue
        known = next((shot for shot in shots if same(shot.planned, planned)), None)
        shots.append(Shot(planned, aim, known.measured if known else measured(planned)))
        if bound * (1 - NEAR) <= shots[-1].measured <= bound * (1 + OVER):
            break
        aim = next_aim(shots, bound)
        if known is not None and any(abs(shot.aimed / aim - 1) < NEAR / 10 for shot in shots):
            break
    holding = [shot for shot in shots if shot.measured <= bound * (1 + OVER)]
    if holding:
        return max(holding, key=lambda shot: shot.measured)
    if refusal is None:
        return min(shots, key=lambda shot: shot.measured)
    nearest = min((shot.measured for shot in shots), default=None)
    raise refusal if nearest is None else TargetError(f"{refusal} The fastest plan measured takes {nearest:.3g} ms.")


def next_aim(shots: list[Shot[Planned]], bound: float) -> float:
    """Between the aims that came out too fast and too slow; as far off as the last plan was, if there are not both."""
    fast = [shot for shot in shots if shot.measured <= bound]
    slow = [shot for shot in shots if shot.measured > bound]
    goal = bound * (1 - NEAR / 2)
    if not fast or not slow:
        last = shots[-1]
        return last.aimed * goal / last.measured
    below, over = max(fast, key=lambda shot: shot.aimed), min(slow, key=lambda shot: shot.aimed)
    if over.aimed <= below.aimed or over.measured <= below.measured:  # noise: their order is not that of their aims
        return (below.aimed + over.aimed) / 2
    part = (goal - below.measured) / (over.measured - below.measured)
    return below.aimed + min(max(part, 0.1), 0.9) * (over.aimed - below.aimed)
