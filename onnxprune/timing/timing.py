"""All that is timed before channels are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxprune.choosing.targets import Limits
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.asking import Progress
from onnxprune.probing.calibration import Calibration
from onnxprune.timing.layers import layers_at
from onnxprune.timing.model import LatencyModel, latency_model
from onnxprune.timing.pacing import Pacing
from onnxprune.timing.setting import Setting
from onnxprune.timing.stairs import Stairs, stairs_of
from onnxprune.timing.times import LayerTimes, Ticked

ONE_THREAD = 1
"""Which kernels a width runs on does not depend on threads, and one alone is timed with less noise."""


@dataclass(frozen=True)
class Timing:
    """What is known of fast widths, by groups' names; the latency in the widths is measured when it is asked for."""

    stairs: Mapping[str, Stairs] = field(default_factory=dict)
    latency: Callable[[], LatencyModel] | None = None

    def within(self, limits: Limits, *, evenly: bool) -> Limits:
        """The limits with the fast widths among them; `evenly`: losses do not choose among them."""
        widths = {name: found.even_widths if evenly else found.widths for name, found in self.stairs.items()}
        return replace(limits, widths=widths)

    def pacing(self, couplings: Couplings, groups: Sequence[Group]) -> Pacing | None:
        """What tells the groups' paces, where widths are chosen for their speed."""
        latency = self.latency
        if latency is None or not self.stairs:
            return None
        return Pacing(couplings, groups, lambda: latency().cost)


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


def ticking(progress: Progress | None, what: str) -> Ticked:
    """Tell how many layers were timed; how many there are to time shows only then."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(f"{what} ({done})", 0, 0)

    return tick
