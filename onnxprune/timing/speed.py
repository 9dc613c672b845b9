"""What pruning did for speed: both models in turn, and which layers, or lost kernels, are at fault if it did little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from onnx import ModelProto
from pydantic.dataclasses import dataclass

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.numbers import fits_whole
from onnxprune.reading.records import STRICT
from onnxprune.rules.axes import Dim
from onnxprune.timing.in_place import times_of_layers
from onnxprune.timing.kernels import numbered, runs_as
from onnxprune.timing.layers import Layers, layers_at, numbers_of
from onnxprune.timing.profile import macs_of
from onnxprune.timing.setting import Setting
from onnxprune.timing.whole import Latency, latency

NO_FASTER = 0.97
"""A ratio of latencies above this is no gain that a user would feel."""

SHARE_FELT = 0.01
"""Layers at fault take at least this share more of the original's time than their multiplications say."""

MOST_AT_FAULT = 5


@dataclass(frozen=True, config=STRICT)
class SlowLayer:
    """A layer that takes more than its multiply-accumulates say: milliseconds and MACs before and after."""

    name: str
    milliseconds: tuple[float, float]
    macs: tuple[float, float]


@dataclass(frozen=True, config=STRICT)
class LostKernel:
    """A node that ran blocked, or fused with others (""), before, and runs as it stands now."""

    node: str
    before: str
    after: str


@dataclass(frozen=True, config=STRICT)
class Speed:
    """
    Both models in turn, with one thread and with all.

    `wanted` is the bound on the ratio in the setting that was asked for, if there was one, and `predicted` what the
    model of latency said of it.
    `at_fault` are layers that keep the model from being faster, if it is not; `lost` kernels those it had before.
    """

    one_thread: Latency
    all_threads: Latency
    wanted: float | None
    predicted: float | None
    at_fault: tuple[SlowLayer, ...]
    lost: tuple[LostKernel, ...]


def speed_of(
    couplings: Couplings,
    pruned: ModelProto,
    widths: Mapping[Dim, int],
    calibration: Calibration,
    setting: Setting,
    timed: Latency,
    wanted: float | None = None,
) -> Speed:
    """
    What pruning to these widths did for speed; `timed` are both models as the setting says, `wanted` a bound on that.

    Raises:
        ModelError: ONNX Runtime does not take a model.
    """
    model = couplings.graph.model
    found = {setting.threads: timed}
    for threads in (1, 0):
        if threads not in found:
            both = latency((model, pruned), calibration, replace(setting, threads=threads))
            assert both is not None
            found[threads] = both
    cost = couplings.costs.latency
    predicted = cost.at(widths) / cost.at({}) if cost is not None else None
    worst = max((found[1], found[0]), key=lambda one: one.ratio)
    at_fault: tuple[SlowLayer, ...] = ()
    if worst.ratio > NO_FASTER and widths:
        at_fault = layers_at_fault(couplings, pruned, widths, calibration, replace(setting, threads=worst.threads))
    lost = tuple(lost_kernels(couplings, pruned, setting)) if widths else ()
    return Speed(found[1], found[0], wanted, predicted, at_fault, lost)


def layers_at_fault(
    couplings: Couplings, pruned: ModelProto, widths: Mapping[Dim, int], calibration: Calibration, setting: Setting
) -> tuple[SlowLayer, ...]:
    """The layers that take most more than their share of multiply-accumulates says, the worst first."""
    layers = layers_at(couplings, setting.batch)
    before, after = times_of_layers([couplings.graph.model, pruned], layers, calibration, setting)
    whole = sum(before.values())
    found = excesses(layers, widths, before, after, SHARE_FELT * whole)
    worst = sorted(found, key=lambda one: one[0], reverse=True)
    return tuple(layer for _, layer in worst[:MOST_AT_FAULT])


def excesses(
    layers: Layers,
    widths: Mapping[Dim, int],
    before: Mapping[int | None, float],
    after: Mapping[int | None, float],
    least: float,
) -> Iterator[tuple[float, SlowLayer]]:
    """Layers that take at least so many milliseconds too much, with these."""
    for number, layer in enumerate(layers.all):
        macs = macs_of(layer, layers, {}), macs_of(layer, layers, widths)
        times = before.get(number, 0.0), after.get(number, 0.0)
        share = macs[1] / macs[0] if macs[0] else 1.0
        excess = times[1] - share * times[0]
        if excess > least:
            yield excess, SlowLayer(layer.name, times, macs)


def lost_kernels(couplings: Couplings, pruned: ModelProto, setting: Setting) -> Iterator[LostKernel]:
    """The nodes that ran blocked or fused in the original, and do so no longer."""
    if not fits_whole(couplings.graph.model):
        return
    numbers = numbers_of(couplings)
    before, after = (runs_as(numbered(model, numbers), setting) for model in (couplings.graph.model, pruned))
    for node in couplings.graph.main:
        was, now = before.get(node.position, ""), after.get(node.position, "")
        if now == node.label != was:
            yield LostKernel(node.name, was, now)
