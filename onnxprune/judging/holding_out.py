"""Hold samples back from pruning, to judge the pruned model on what it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.errors import DataError
from onnxprune.judging.allowance import Allowance
from onnxprune.judging.intervals import Kind, fewest_samples
from onnxprune.probing.calibration import Calibration

MOST_HELD_OUT = 0.5
"""Of the samples: pruning needs its part."""

FLIPS_TO_SPARE = 6
"""Answers that may be lost among the samples held out: with a limit of 1 % at 95 %, a model that really loses half of
it still passes on 1,182 samples."""

NUMBERS_HELD_OUT = 512
"""Samples that are held out for a metric of numbers, whose scatter nobody knows yet."""


@dataclass(frozen=True)
class Halves:
    """
    Samples to prune with and samples to judge on, no sample in both.

    `rows` and `held_out` are their numbers in the data they come from, each in ascending order.
    """

    pruning: Calibration
    judging: Calibration
    rows: np.ndarray
    held_out: np.ndarray


def hold_out(
    calibration: Calibration,
    allowed: Allowance,
    kind: Kind,
    *,
    strata: np.ndarray | None = None,
    share: float | None = None,
    seed: int = 0,
) -> Halves:
    """
    Split the samples, the same way for the same seed.

    Args:
        calibration: the samples.
        allowed: what has to be shown; it decides how many samples are held out: as many as show it with some answers
            lost, but no more than half. Of 1,000 samples, 500 are held out to show a drop of 1 % at 95 % (one answer
            may be lost); of 10,000, 1,182.
        kind: of the metric.
        strata: a class for each sample, `[samples]`; both parts then hold their share of each.
        share: of the samples to hold out, in place of the number above.
        seed: of the choice.

    Raises:
        DataError: too few samples to show what is allowed.
    """
    fewest, count = fewest_samples(allowed.limit, allowed.confidence, kind), len(calibration)
    wanted = round(count * share) if share is not None else held_out_at_most(count, allowed, kind)
    if wanted < fewest or wanted >= count:
        raise DataError(
            f"Expected at least {2 * fewest:,} samples, half of them to show {allowed} on, found {count:,}. Pass more, "
            f"or judge on others with --eval-data. {what_they_show(allowed, count // 2, kind)}".rstrip()
        )
    rng = np.random.default_rng(seed)
    chosen = np.zeros(count, bool)
    chosen[evenly(np.zeros(count, int) if strata is None else strata, wanted, rng)] = True
    rows, held_out = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    return Halves(calibration.only(rows), calibration.only(held_out), rows, held_out)


def held_out_at_most(count: int, allowed: Allowance, kind: Kind) -> int:
    """How many of so many samples to hold out."""
    enough = NUMBERS_HELD_OUT
    if kind != "numbers":
        enough = fewest_samples(allowed.limit, allowed.confidence, kind, lost=FLIPS_TO_SPARE)
    return min(enough, int(count * MOST_HELD_OUT))


def evenly(strata: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """
    So many samples, from each stratum its share, give or take one::

        stratum a   x   x   x   x   x      each sample gets a place between 0 and 1, evenly spaced in its stratum,
        stratum b     x     x     x        with a random order and start;
        stratum c      x         x         those with the lowest places are chosen
                    ──chosen──|
    """
    places = np.empty(len(strata))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        places[members] = (rng.permutation(len(members)) + rng.random()) / len(members)
    return np.argsort(places, kind="stable")[:count]


def require_enough(samples: int, allowed: Allowance, kind: Kind) -> None:
    """
    Check that there are samples enough to judge on.

    Raises:
        DataError: they could not show what is allowed, even if nothing were lost on any of them.
    """
    fewest = fewest_samples(allowed.limit, allowed.confidence, kind)
    if samples < fewest:
        raise DataError(
            f"Expected at least {fewest:,} samples to judge on, to show {allowed}, found {samples:,}. "
            f"Pass more. {what_they_show(allowed, samples, kind)}".rstrip()
        )


def what_they_show(allowed: Allowance, samples: int, kind: Kind) -> str:
    """What so many samples can show instead."""
    if kind == "numbers" or samples < 1:
        return ""
    shown = np.ceil(1000 * (1 - allowed.risk ** (1 / samples))) / 10
    return (
        f"On {samples:,} a loss of at most {shown:.1f}% can be shown: allow it with --max-drop, or lower --confidence."
    )
