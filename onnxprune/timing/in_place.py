"""Times of layers where they stand: in a run of the whole model."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from onnxprune.probing.calibration import Calibration
from onnxprune.timing.kernels import Kernel, numbered, profiled
from onnxprune.timing.layers import Layers, numbers_of
from onnxprune.timing.setting import Setting
from onnxprune.timing.whole import run_at

PROFILE_SECONDS = 2.0
"""For all models together."""


def times_of_layers(
    models: Sequence[ModelProto], layers: Layers, calibration: Calibration, setting: Setting
) -> list[dict[int | None, float]]:
    """
    Milliseconds of the layers of the models, run in turn; the models are pruned from the layers' own, or that itself.

    Layers are known by their numbers; None: what is no layer's.
    """
    feeds, _ = run_at(calibration, setting)
    numbers = numbers_of(layers.couplings)
    runs = profiled(
        [numbered(model, numbers) for model in models], [feeds] * len(models), setting, seconds=PROFILE_SECONDS
    )
    return [by_layer(kernels, layers) for kernels in runs]


def by_layer(kernels: Sequence[Kernel], layers: Layers) -> dict[int | None, float]:
    """Milliseconds of the kernels, added up layer by layer."""
    layer_of = {position: number for number, layer in enumerate(layers.all) for position in layer.positions}
    found: dict[int | None, float] = {}
    for kernel in kernels:
        number = None if kernel.number is None else layer_of.get(kernel.number)
        found[number] = found.get(number, 0.0) + kernel.microseconds / 1000
    return found
