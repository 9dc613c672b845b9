"""The models and digits in `fixtures`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.coupling.couple import Couplings, couple
from onnxprune.reading.read import read

FIXTURES = Path(__file__).parent.parent / "fixtures"
MODELS = tuple(sorted(path.stem for path in FIXTURES.glob("*.onnx")))
CLASSIFIERS = tuple(name for name in MODELS if name != "unet_torch")
TWINS = ("resnet_dynamo", "vit_dynamo")
"""The same networks as others among them, as another exporter writes them."""


def twins_later(names: Iterable[str], *, and_also: Iterable[str] = ()) -> list[Any]:
    """The names as parameters of a test that takes its time: twins, `and_also` others, are for the slow run."""
    late = {*TWINS, *and_also}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in late else []) for name in names]


def model_path(name: str) -> Path:
    """The file of a bundled model."""
    return FIXTURES / f"{name}.onnx"


def data_path(name: str) -> Path:
    """The calibration digits in the form that the model takes."""
    return FIXTURES / "digits" / ("calibration_flat.npz" if "sklearn" in name else "calibration.npz")


@cache
def digits(name: str, count: int) -> dict[str, np.ndarray]:
    """The first digits and their labels."""
    with np.load(data_path(name)) as archive:
        return {key: archive[key][:count] for key in archive.files}


@cache
def bundled(name: str) -> Couplings:
    """A bundled model, coupled."""
    return couple(read(model_path(name)))
