"""How tests run here: examples are the same each time, numpy has one thread, and what is timed is timed briefly."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy is loaded: threads of two processes would fight

import pytest
from hypothesis import settings

from onnxprune.verifying import measure

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def timed_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests have no interest in how fast a model is."""
    monkeypatch.setattr(measure, "MEASURING_SECONDS", 0.02)
