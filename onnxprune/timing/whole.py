"""Latency of whole models, run in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.errors import ModelError
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.numbers import fits_whole
from onnxprune.timing.sessions import options_for, timed_session
from onnxprune.timing.setting import Setting

MEASURING_SECONDS = 1.5
MOST_ROUNDS = 200
FEWEST_ROUNDS = 5
WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Latency:
    """
    Median milliseconds of each model, run in turn, and the ratio last / first round by round.

    Half of the ratios lie between `low` and `high`. `batch` are the samples of a run, `threads` those of ONNX Runtime,
    0: all.
    """

    milliseconds: tuple[float, ...]
    ratio: float
    low: float
    high: float
    batch: int
    rounds: int
    threads: int
    provider: str


def latency(
    models: Sequence[ModelProto], calibration: Calibration, setting: Setting, *, seconds: float | None = None
) -> Latency | None:
    """
    Time models in turn, A B A B ..., all optimisations of ONNX Runtime on.

    Medians over up to 200 rounds or about so many seconds (1.5), after a warm-up. None where a model is too large to be
    run whole: that time would be the disk's.

    Raises:
        ModelError: ONNX Runtime does not take a model, or does not run it at this batch.
    """
    if not all(map(fits_whole, models)):
        return None
    feeds, batch = run_at(calibration, setting)
    sessions = [timed_session(model, setting, options_for(setting)) for model in models]
    try:
        for session in sessions:
            for _ in range(WARM_UP):
                session.run(None, feeds)
    except Exception as failure:  # ONNX Runtime raises many kinds
        first = str(failure).splitlines()[0]
        raise ModelError(f"The model does not run at a batch of {batch}: {first} Choose another --batch.") from None
    seconds = MEASURING_SECONDS if seconds is None else seconds
    times: list[list[float]] = []
    start = time.perf_counter()
    while len(times) < FEWEST_ROUNDS or (time.perf_counter() - start < seconds and len(times) < MOST_ROUNDS):
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
    return Latency(medians, middle, low, high, batch, len(times), setting.threads, setting.provider)


def run_at(calibration: Calibration, setting: Setting) -> tuple[dict[str, np.ndarray], int]:
    """What to feed in a run, and how many samples that are: the batch that the model fixes, or else the setting's."""
    if calibration.batch is not None or setting.batch == 1:
        samples = calibration.filled(np.arange(1))
        return calibration.at(samples), len(samples)
    return calibration.together(setting.batch), setting.batch
