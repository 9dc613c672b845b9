"""Which rows layers are refitted on: samples, positions of each, and those held out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.reading.observing import Session

REPAIR_SAMPLES = 1024
"""Samples that layers are refitted on, the first ones."""

HELD_OUT = 5
"""One batch in so many is held out, to choose the penalty and to see whether the new weights are better."""

ROWS_A_SAMPLE = 100
"""Positions of a sample that are taken at most, at random: neighbours in an image say much the same."""

BATCH = 16

MOST_NUMBERS = 2**25
"""Features that are computed at a time, give or take a sample."""


def samples_at_a_time(positions: int, features: int) -> int:
    """How many samples a batch has, where each has so many positions and each of these so many features."""
    return max(1, min(BATCH, MOST_NUMBERS // max(positions * features, 1)))


def fed(session: Session, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of the feed the session takes."""
    return {port.name: feed[port.name] for port in session.get_inputs()}
