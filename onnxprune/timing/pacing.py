"""
How fast groups get narrower beside each other where nothing tells what they lose: as evenly as is fast.

At even shares, time lags behind the multiply-accumulates: layers that move numbers more than they multiply take in
proportion to their width, not to its square. So with x the logarithms of the shares that stay,

    minimise  T(x) + λ · variance of x    where  M(x) is what it may be,  x ≥ some part of the even share

where T and M are the latency and the multiply-accumulates as shares of the original's: less and less evenly, until T is
no more than a little above M, or all that is less even gains next to nothing. Under a bound on the latency likewise: T
is what it may be, and M as large as can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize  # type: ignore[import-untyped]  # scipy brings no types

from onnxprune.choosing.allocation import Cost, cost_in_groups
from onnxprune.choosing.targets import Targets
from onnxprune.coupling.costs import Price, Staircase
from onnxprune.coupling.couple import Couplings, Group

IN_STEP = 0.04
"""By how much the latency's share may be above that of the multiply-accumulates."""

GAIN = 0.01
"""Of that difference, for which a narrowing is not made less even."""

LESS_EVENLY = (
    *((evenness, 0.5) for evenness in (10.0, 3.0, 1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03)),
    *((0.03, part) for part in (0.45, 0.4, 0.35, 0.3)),
)
"""What is tried: λ, and which part of the even share stays of every group."""

NARROWEST = -6.0
"""The logarithm of a share that is next to nothing."""

HELD = 1e-3
"""A narrowing is one to a share if it is this near."""

MOST_STEPS = 200

SLOWEST, FASTEST = 0.01, 10.0
"""The paces that are told."""

Logs = np.ndarray
"""The logarithms of the shares that stay `[groups]`."""


@dataclass(frozen=True)
class Share:
    """A cost, as a share of the original's, in the logarithms of the shares that stay of groups of such `sizes`."""

    cost: Cost
    sizes: np.ndarray

    @classmethod
    def of(cls, price: Price, groups: Sequence[Group]) -> Share:
        """The share of a price, stairs smoothed: where widths can be chosen, they are mostly at edges."""
        smooth = price.smooth
        return cls(cost_in_groups(smooth, groups, smooth.at({})), np.array([group.size for group in groups], float))

    def at(self, logs: Logs) -> float:
        """The share."""
        return self.cost.at(self.sizes * np.exp(logs)) / self.cost.bound

    def slope(self, logs: Logs) -> np.ndarray:
        """By how much it rises with each logarithm `[groups]`."""
        return np.asarray(self.cost.terms(self.sizes * np.exp(logs)) @ self.cost.powers) / self.cost.bound


@dataclass(frozen=True)
class Pacing:
    """The paces of groups on the way to a target; `latency` is asked for when it is needed."""

    couplings: Couplings
    groups: Sequence[Group]
    latency: Callable[[], Staircase]

    def paces(self, targets: Targets) -> dict[str, float]:
        """For each group, by its name, its pace on the way to the bound on the latency or the multiply-accumulates."""
        bounds = targets.bounds(self.couplings.costs)
        shares = {name: bounds[name][1] / bounds[name][0].at({}) for name in ("macs", "latency") if name in bounds}
        name = min(shares, key=lambda name: shares[name], default=None)
        if name is None or shares[name] >= 1:
            return {}
        macs, time = Share.of(self.couplings.costs.macs, self.groups), Share.of(self.latency(), self.groups)
        logs = narrowed(macs, time, name, shares[name])
        if logs is None:
            return {}
        paces = np.clip(logs / logs.mean(), SLOWEST, FASTEST)
        return {group.name: float(pace) for group, pace in zip(self.groups, paces, strict=True)}


def narrowed(macs: Share, time: Share, bounded: str, share: float) -> Logs | None:
    """The narrowing to this share of one that is as even as the other keeps up with it; None if none gets there."""
    held, free, sign = (macs, time, 1.0) if bounded == "macs" else (time, macs, -1.0)
    even = even_narrowing(held, share)
    if even is None:
        return None
    found = [even]
    for evenness, part in LESS_EVENLY:
        logs = uneven(held, free, sign, share, evenness, even + math.log(part), found[-1])
        if abs(held.at(logs) / share - 1) < HELD:
            found.append(logs)
    behind = [time.at(logs) - macs.at(logs) for logs in found]
    enough = max(IN_STEP, min(behind) + GAIN)
    return next(logs for logs, lag in zip(found, behind, strict=True) if lag <= enough)


def even_narrowing(held: Share, share: float) -> Logs | None:
    """The one that keeps as much of all groups; None if that leaves more than the share."""
    ones = np.ones(len(held.sizes))
    if held.at(NARROWEST * ones) >= share:
        return None
    return float(brentq(lambda log: held.at(log * ones) - share, NARROWEST, 0.0)) * ones


def uneven(held: Share, free: Share, sign: float, share: float, evenness: float, least: Logs, start: Logs) -> Logs:
    """The narrowing that is best for one cost times the sign, and so even, with the other held at the share."""
    return np.asarray(
        minimize(
            lambda logs: sign * free.at(logs) + evenness * logs.var(),
            start,
            jac=lambda logs: sign * free.slope(logs) + evenness * 2 * (logs - logs.mean()) / len(logs),
            bounds=[(low, 0.0) for low in least],
            constraints={
                "type": "eq",
                "fun": lambda logs: math.log(held.at(logs) / share),
                "jac": lambda logs: held.slope(logs) / held.at(logs),
            },
            method="SLSQP",
            options={"maxiter": MOST_STEPS},
        ).x
    )
