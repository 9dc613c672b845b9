"""Where the time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from onnxprune.probing.asking import Progress


class Clock:
    """Tells what is going on, and keeps the seconds of each stage."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.progress = progress

    def anew(self) -> Clock:
        """A clock that tells the same, with all seconds before it."""
        other = Clock(self.progress)
        other.seconds |= self.seconds
        return other

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage, timed."""
        if self.progress:
            self.progress(name, 0, 0)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
