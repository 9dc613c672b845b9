"""Times of layers at widths: each is measured once on a machine, and kept for all later runs."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.probing.journal import Entry, Journal, open_journal
from onnxprune.timing.kernels import Kernel, profiled
from onnxprune.timing.layers import Layer, Layers, Unbuildable, Widths
from onnxprune.timing.setting import Setting
from onnxprune.timing.trials import Trial, trial_of

CACHE_VARIABLE = "ONNXPRUNE_TIMINGS"
"""Names another folder for the times than the user's cache."""

MEANING = "onnxprune times 3"
"""Part of every key; to be changed when a layer of the same key comes to be timed in another way."""

SECONDS = 0.2
"""For the widths of a layer together, about; large layers take longer."""

MOST_BYTES = 2**29
"""Of weights that are held at once."""

OWN, AROUND = "microseconds", "microseconds around"

COPIES = 2
"""
Of a layer in the model that it is timed in, side by side, where there are several threads: the first has to wake them.

Where the layer stands, they are awake from those before.
"""

Ticked = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Times:
    """
    Microseconds of a layer at several widths `[widths]`.

    `own` are those of the kernels that stand for its nodes, `around` those of what ONNX Runtime put around them, since
    the layer was run by itself: changes of layout.
    """

    own: np.ndarray
    around: np.ndarray


class LayerTimes:
    """
    How long layers take at widths, by themselves.

    `measured` counts the layers that were run for it; others were known. `tick` is called after each layer.
    """

    def __init__(self, layers: Layers, setting: Setting, tick: Ticked = lambda: None) -> None:
        self.layers = layers
        self.setting = setting
        self.measured = 0
        self._tick = tick
        self._copies = 1 if setting.threads == 1 else COPIES
        self._journal = opened(setting)
        kept = self._journal.entries if self._journal else {}
        asked = {(entry.group, entry.question): entry.mean for entry in kept.values()}
        self._known = {key: (own, asked.get((key, AROUND), 0.0)) for (key, what), own in asked.items() if what == OWN}
        self._failed: set[str] = set()

    def of(self, layer: Layer, widths: Sequence[Widths]) -> Times | None:
        """Of the layer at each of these widths; None where it cannot stand by itself."""
        try:
            trials = [trial_of(self.layers, layer, one) for one in widths]
        except Unbuildable:
            return None
        keys = [trial.key for trial in trials]
        if not self._failed.isdisjoint(keys):
            return None
        if any(key not in self._known for key in keys):
            try:
                self._measure({trial.key: trial for trial in trials})
            except ModelError:
                self._failed.update(keys)
                return None
            self.measured += 1
        self._tick()
        own, around = np.array([self._known[key] for key in keys]).T
        return Times(own, around)

    def _measure(self, trials: Mapping[str, Trial]) -> None:
        """Run them in turn: only times of one moment can be compared."""
        for part in parts_of(list(trials.items())):
            runs = profiled(
                [trial.model(self._copies) for _, trial in part],
                [trial.feeds(self._copies) for _, trial in part],
                self.setting,
                seconds=SECONDS * len(part) / len(trials),
            )
            for (key, trial), kernels in zip(part, runs, strict=True):
                own = sum(quietest(kernels, len(trial.nodes)))
                around = sum(kernel.microseconds for kernel in kernels if kernel.number is None) / self._copies
                self._known[key] = own, around
                self._keep(Entry(key, AROUND, around, 0.0))
                self._keep(Entry(key, OWN, own, 0.0))

    def _keep(self, entry: Entry) -> None:
        """Write a time down, as long as that works."""
        try:
            if self._journal is not None:
                self._journal.append(entry)
        except OnnxPruneError:
            self._journal = None


def quietest(kernels: Sequence[Kernel], nodes: int) -> Iterable[float]:
    """Microseconds of each of a layer's nodes, in the copy of the layer where it took least."""
    found: dict[int, dict[int, float]] = {}
    for kernel in kernels:
        if kernel.number is not None:
            copy, node = divmod(kernel.number, nodes)
            by_copy = found.setdefault(node, {})
            by_copy[copy] = by_copy.get(copy, 0.0) + kernel.microseconds
    return [min(by_copy.values()) for by_copy in found.values()]


def parts_of(trials: Sequence[tuple[str, Trial]]) -> Iterator[list[tuple[str, Trial]]]:
    """The trials in parts whose weights may be held at once."""
    part: list[tuple[str, Trial]] = []
    for key, trial in trials:
        if part and sum(one.bytes for _, one in part) + trial.bytes > MOST_BYTES:
            yield part
            part = []
        part.append((key, trial))
    if part:
        yield part


def opened(setting: Setting) -> Journal | None:
    """The journal of this setting's times; None where nothing can be kept."""
    key = hashlib.sha256(f"{MEANING} {setting.key}".encode()).hexdigest()
    try:
        return open_journal(folder(), key, {"setting": setting.key})
    except OnnxPruneError:
        return None


def folder() -> Path:
    """Where times are kept."""
    said = os.environ.get(CACHE_VARIABLE)
    return Path(said) if said else Path(platformdirs.user_cache_dir("onnxprune", appauthor=False)) / "timings"
