"""The drop of a metric from the original to the pruned model, and the most it may be, from paired samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri  # type: ignore[import-untyped]  # scipy brings no types

from onnxprune.judging.exact import EXCLUDED, upper_difference, upper_rate

Kind = Literal["losses", "answers", "numbers"]
"""
What a metric says of one sample: that a right answer stayed ("losses": the original is right throughout), that the
answer is right or wrong ("answers"), or a number ("numbers").
"""

RESAMPLES = 4999
RESAMPLED_AT_ONCE = 2_000_000
"""Numbers that one batch of resamples holds at most."""

FEWEST_TO_RESAMPLE = 20
"""Fewer samples say too little of the tails of what they are drawn from."""

MOST_SAMPLES = 10**7


@dataclass(frozen=True, slots=True)
class Drop:
    """
    What was lost: `mean` on these samples, and at most `upper` at this confidence.

    A drop below zero is a gain. `method` says in words how the bound was found.
    """

    mean: float
    upper: float
    confidence: float
    samples: int
    method: str


def drop_of(differences: np.ndarray, confidence: float, kind: Kind = "numbers", *, seed: int = 0) -> Drop:
    """
    The drop, from what each sample lost: its figure with the original less its figure with the pruned model.

    For answers the bound is exact: it is too low with a chance of at most one less the confidence, for any model and
    any number of samples. For numbers it is that of a BCa bootstrap (Efron 1987), which holds nearly so often, the more
    so the more samples there are. A number that is none, on any sample, is a drop without bound.
    """
    found = np.sort(np.asarray(differences, np.float64))
    if not np.isfinite(found).all():
        return Drop(math.inf, math.inf, confidence, len(found), "no bound: some figures are not finite")
    if kind != "numbers" and np.isin(found, (-1, 0, 1)).all():
        upper, method = exact_bound(found, confidence, kind)
    else:
        upper, method = bootstrap_bound(found, confidence, seed)
    return Drop(float(found.mean()), upper, confidence, len(found), method)


def exact_bound(differences: np.ndarray, confidence: float, kind: Kind) -> tuple[float, str]:
    """The bound from numbers of samples that were lost and gained."""
    lost, gained = int((differences > 0).sum()), int((differences < 0).sum())
    if kind == "losses":
        return upper_rate(lost, len(differences), 1 - confidence), f"exact, {lost} answers lost (Clopper-Pearson)"
    upper = upper_difference(lost, gained, len(differences), 1 - confidence)
    return upper, f"exact, {lost} answers lost and {gained} gained (Buehler)"


def bootstrap_bound(differences: np.ndarray, confidence: float, seed: int) -> tuple[float, str]:
    """The bound by resampling, the same for any order of the samples; they come sorted."""
    mean = float(differences.mean())
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return mean, "every sample lost the same"
    from scipy.stats import bootstrap  # type: ignore[import-untyped]  # here, for it takes half a second to load

    batch = max(1, RESAMPLED_AT_ONCE // len(differences))
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=batch,
        confidence_level=confidence,
        alternative="less",
        method="BCa",
        random_state=np.random.default_rng(seed),
    )
    upper = float(found.confidence_interval.high)
    return upper if upper >= mean else float(differences.max()), f"bootstrap (BCa, {RESAMPLES:,} resamples)"


def expected_upper(differences: np.ndarray, confidence: float, kind: Kind, samples: int) -> float:
    """
    About the bound that `samples` other samples would show if they lost as much as these.

    It decides nothing: it says where a search looks first.
    """
    if not np.isfinite(differences).all():
        return math.inf
    if kind == "numbers":
        spread = float(differences.std()) / math.sqrt(samples)
        return float(differences.mean()) + float(ndtri(confidence)) * spread
    lost, gained = (round(float((sign * differences > 0).mean()) * samples) for sign in (1, -1))
    if kind == "losses":
        return upper_rate(lost, samples, 1 - confidence)
    return upper_difference(lost, gained, samples, 1 - confidence)


def fewest_samples(limit: float, confidence: float, kind: Kind, *, lost: int = 0) -> int:
    """
    The fewest samples that can show a drop of at most `limit`, when `lost` answers are lost and none is gained.

    With none lost, 299 for one percent at 95 %: of a model that loses more, so many samples all stay right with a
    chance below 5 %. Numbers need a few to resample at least, and how many more depends on how they scatter.
    """
    if kind == "numbers":
        return FEWEST_TO_RESAMPLE
    risk = (1 - confidence) * (1 - EXCLUDED)
    low, high = lost, MOST_SAMPLES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if upper_rate(lost, middle, risk) <= limit else (middle, high)
    return high
