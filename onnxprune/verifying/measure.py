"""What a model costs and does, measured: latency in turn, loss, accuracy, distance between outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.probing.calibration import Calibration
from onnxprune.probing.losses import Loss, class_axis
from onnxprune.reading.observing import session_for
from onnxprune.reading.parts import PartedSession

MEASURING_SECONDS = 1.5
MOST_ROUNDS = 200
FEWEST_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Median milliseconds of each model, run in turn, and the ratio second / first round by round."""

    milliseconds: tuple[float, ...]
    ratio: float
    low: float
    high: float
    """The middle half of the ratios lies between `low` and `high`."""

    batch: int
    rounds: int


def latency(models: Sequence[ModelProto], calibration: Calibration, *, threads: int = 0) -> Latency | None:
    """
    Time two models in turn, A B A B ..., all optimizations on, one sample a run (or the model's fixed batch).

    None where a model is run part by part: that time would be the disk's.

    Medians over up to 200 rounds or about 1.5 s, after a warm-up.
    """
    sessions = [session_for(model, threads=threads) for model in models]
    if any(isinstance(session, PartedSession) for session in sessions):
        return None
    samples = calibration.filled(np.arange(1))
    feeds = calibration.at(samples)
    for session in sessions:
        for _ in range(2):
            session.run(None, feeds)
    times: list[list[float]] = []
    start = time.perf_counter()
    while len(times) < FEWEST_ROUNDS or (time.perf_counter() - start < MEASURING_SECONDS and len(times) < MOST_ROUNDS):
        turn = []
        for session in sessions:
            before = time.perf_counter()
            session.run(None, feeds)
            turn.append(1000 * (time.perf_counter() - before))
        times.append(turn)
    table = np.array(times)
    ratios = table[:, -1] / table[:, 0]
    low, middle, high = (float(q) for q in np.percentile(ratios, (25, 50, 75)))
    medians = tuple(float(m) for m in np.median(table, 0))
    return Latency(medians, middle, low, high, len(samples), len(times))


def accuracy(outputs: Mapping[str, np.ndarray], loss: Loss, labels: np.ndarray | None) -> float | None:
    """The share of samples whose highest class is the label; None where that means nothing."""
    if labels is None or labels.dtype.kind not in "iu":
        return None
    for name in loss.outputs:
        values = outputs.get(name)
        axis = None if values is None else class_axis(values.shape, labels.shape)
        if values is not None and axis is not None and values.dtype.kind == "f":
            return float((values.argmax(axis) == labels).mean())
    return None


def distance(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Root of the summed squared difference over the root of the summed square of `one`, over all float outputs."""
    apart = size = 0.0
    for name, values in one.items():
        if values.dtype.kind == "f" and name in other and other[name].shape == values.shape:
            apart += float(np.square(values.astype(np.float64) - other[name].astype(np.float64)).sum())
            size += float(np.square(values, dtype=np.float64).sum())
    return float(np.sqrt(apart / size)) if size else 0.0
