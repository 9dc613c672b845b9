"""All that is timed before channels are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.choosing.targets import Limits
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.asking import Progress
from onnxprune.probing.calibration import Calibration
from onnxprune.timing.layers import layers_at
from onnxprune.timing.model import LatencyModel, latency_model
from onnxprune.timing.setting import Setting
from onnxprune.timing.stairs import Stairs, stairs_of
from onnxprune.timing.times import LayerTimes, Ticked

SLIGHTLY = 0.1
"""By which share groups are made narrower to see what they save."""

LEAST_SHARE = 0.002
"""Of the model's multiply-accumulates, that a group must have a part in to have a pace of its own."""

MOST_HASTE = 3.0

ONE_THREAD = 1
"""Which kernels a width runs on does not depend on threads, and one alone is timed with less noise."""


@dataclass(frozen=True)
class Timing:
    """
    What is known of fast widths, by groups' names, and of the latency in the widths, if that was wanted.

    `paces` tell which groups save more time for the same multiply-accumulates than others.
    """

    setting: Setting
    stairs: Mapping[str, Stairs] = field(default_factory=dict)
    model: LatencyModel | None = None
    paces: Mapping[str, float] = field(default_factory=dict)

    def within(self, limits: Limits, *, evenly: bool) -> Limits:
        """The limits with the fast widths among them; `evenly`: losses do not choose among them."""
        widths = {name: found.even_widths if evenly else found.widths for name, found in self.stairs.items()}
        return replace(limits, widths=widths, paces=self.paces)

    def priced(self, couplings: Couplings) -> Couplings:
        """The couplings with the latency among their costs."""
        if self.model is None:
            return couplings
        return replace(couplings, costs=replace(couplings.costs, latency=self.model.cost))


def fast_widths_of(
    couplings: Couplings, groups: Sequence[Group], setting: Setting, progress: Progress | None = None
) -> dict[str, Stairs]:
    """The fast widths of each group on this machine, by its name; times are kept for later runs."""
    alone = replace(setting, threads=ONE_THREAD)
    layers = layers_at(couplings, setting.batch)
    return stairs_of(groups, LayerTimes(layers, alone, ticking(progress, "time widths of layers")))


def latency_of_widths(
    couplings: Couplings,
    groups: Sequence[Group],
    stairs: Mapping[str, Stairs],
    calibration: Calibration,
    setting: Setting,
    progress: Progress | None = None,
) -> LatencyModel:
    """
    The latency in the widths of the groups.

    Raises:
        ModelError: the model does not run at the setting's batch.
    """
    layers = layers_at(couplings, setting.batch)
    times = LayerTimes(layers, setting, ticking(progress, "time layers"))
    return latency_model(couplings, groups, stairs, times, calibration, setting)


def paces_of(couplings: Couplings, groups: Sequence[Group], stairs: Mapping[str, Stairs]) -> dict[str, float]:
    """
    For each group, by its name, how much more time it saves for the same multiply-accumulates than the usual one.

    That to the power of 1.5, from a third to three; groups with next to no part in either go along with the others.
    """
    macs, whole = {}, couplings.costs.macs.at({})
    for group in groups:
        touched = couplings.costs.macs.touching(frozenset(group.dims))
        narrower = {dim: dim.size * (1 - SLIGHTLY) for dim in group.dims}
        macs[group.name] = (touched.at({}) - touched.at(narrower)) / SLIGHTLY  # type: ignore[arg-type]
    rates = {
        name: found.saves / macs[name]
        for name, found in stairs.items()
        if found.saves > 0 and macs[name] > LEAST_SHARE * whole
    }
    usual = float(np.median([*rates.values()])) if rates else 1.0
    return {name: float(np.clip((rate / usual) ** 1.5, 1 / MOST_HASTE, MOST_HASTE)) for name, rate in rates.items()}


def ticking(progress: Progress | None, what: str) -> Ticked:
    """Tell how many layers were timed; how many there are to time shows only then."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(f"{what} ({done})", 0, 0)

    return tick
