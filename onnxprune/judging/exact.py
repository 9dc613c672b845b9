"""
Exact upper bounds for rates: what is lost at most, given how many samples were lost and gained.

*Only losses.* Where every sample can be lost and none gained, the losses are binomial, and the bound is that of Clopper
and Pearson (1934): the largest rate at which so few losses are not yet unlikely.

*Losses and gains.* Each sample is lost, gained or unchanged, and the drop is the rate of losses less the rate of gains.
Bounding the losses and forgetting the gains would be valid, but of no use for models that err a little differently in
many places. The bound here is Buehler's (1957): put all outcomes in an order, best first, and take the largest drop at
which an outcome as good as the one seen, or better, is not yet unlikely, whatever the rate of changes. Any order gives
a valid bound; the score bound `losses - gains + z √(losses + gains + z²/4)` is an order that gives a close one. (Lloyd
and Moldovan 2007 bound paired proportions in this manner.) Rates of changes that the data all but exclude are left out,
and the chance that they were excluded wrongly is paid for out of the risk (Berger and Boos 1994).

More losses are worse and more gains are better in that order, so the least favourable of all models that lose at least
so much is one that loses just so much: only one unknown, the rate of changes, is left to search.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.special import bdtr, betaincinv, gammaln, ndtri, xlog1py, xlogy  # type: ignore[import-untyped]  # no types

EXCLUDED = 1e-4
"""Share of the risk that pays for leaving out rates of changes."""

RATES = 64
"""Rates of changes that are tried between the lowest and the highest."""

HALVINGS = 30
"""Of the interval in which a bound lies: enough for nine digits."""


def upper_rate(events: int, samples: int, risk: float) -> float:
    """Clopper and Pearson's upper bound for the rate of events; a higher rate shows so few with a chance below risk."""
    return 1.0 if events >= samples else float(betaincinv(events + 1, samples - events, 1 - risk))


def lower_rate(events: int, samples: int, risk: float) -> float:
    """Their lower bound."""
    return 0.0 if events <= 0 else float(betaincinv(events, samples - events + 1, risk))


@cache
def upper_difference(losses: int, gains: int, samples: int, risk: float) -> float:
    """Buehler's upper bound for the rate of losses less the rate of gains; a law of the counts alone."""
    excluded = EXCLUDED * risk
    lowest, highest = (bound(losses + gains, samples, excluded / 2) for bound in (lower_rate, upper_rate))
    most_losses = as_good_as(losses, gains, samples, float(ndtri(1 - risk)))

    def likely(drop: float) -> bool:
        changes = np.geomspace(max(lowest, abs(drop), highest * 1e-9), highest, RATES)
        return bool(chance(drop, changes, samples, most_losses) > risk - excluded)

    return last(likely, -highest, highest)


def as_good_as(losses: int, gains: int, samples: int, z: float) -> np.ndarray:
    """For each number of gains, the most losses that are no worse than what was seen; below zero where none are."""
    shift = z * z / 4
    seen = losses - gains + z * np.sqrt(losses + gains + shift)
    each = np.arange(samples + 1)
    room = np.maximum(seen + 2 * each + shift, 0.0)
    root = (np.sqrt(z * z + 4 * room) - z) / 2
    allowed = np.floor(np.square(root) - each - shift + 1e-9).astype(np.int64)
    most: np.ndarray = np.minimum(allowed, samples - each)
    return most


def chance(drop: float, changes: np.ndarray, samples: int, most_losses: np.ndarray) -> float:
    """The highest chance, over these rates of changes, of at most so many losses for each number of gains."""
    lost, gained = (np.clip((changes + sign * drop) / 2, 0.0, 1.0)[:, None] for sign in (1, -1))
    enough = int(np.ceil(samples * gained.max() + 8 * np.sqrt(samples * gained.max()) + 8))
    gains = np.arange(min(samples, enough) + 1)
    allowed = most_losses[gains]
    rate = np.clip(lost / np.maximum(1 - gained, 1e-300), 0.0, 1.0)
    at_most = np.where(allowed < 0, 0.0, bdtr(np.maximum(allowed, 0), samples - gains, rate))
    return float((binomial(gains, samples, gained) * at_most).sum(1).max())


def binomial(events: np.ndarray, samples: int, rate: np.ndarray) -> np.ndarray:
    """The chance of so many events."""
    ways = gammaln(samples + 1) - gammaln(events + 1) - gammaln(samples - events + 1)
    chances: np.ndarray = np.exp(ways + xlogy(events, rate) + xlog1py(samples - events, -rate))
    return chances


def last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number for which something holds that holds up to some number, from above."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high
