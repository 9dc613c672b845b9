"""How tests run here: examples are the same each time, numpy has one thread, and what is timed is timed briefly."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded: threads of two processes would fight

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from onnxprune import beginning
from onnxprune.timing import correction, in_place, speed, times, whole
from onnxprune.timing.stairs import Stairs

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


def any_width(*_: object) -> dict[str, Stairs]:
    """No widths are fast or slow: what is chosen must not depend on the machine that tests run on."""
    return {}


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests have no interest in how fast a model is."""
    monkeypatch.setattr(whole, "MEASURING_SECONDS", 0.02)
    monkeypatch.setattr(in_place, "PROFILE_SECONDS", 0.02)
    monkeypatch.setattr(correction, "WHOLE_SECONDS", 0.02)
    monkeypatch.setattr(beginning, "fast_widths_of", any_width)
    monkeypatch.setattr(speed, "NO_FASTER", float("inf"))


@pytest.fixture(autouse=True, scope="session")
def timings_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Times that tests measure are not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("timings")
        patch.setenv(times.CACHE_VARIABLE, str(folder))
        yield folder
