"""What a worker is asked: probes, and all it must know to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.probing.calibration import Calibration
from onnxprune.probing.engine.cutting import Across
from onnxprune.probing.engine.lab import KEPT, Address
from onnxprune.probing.losses import Loss


@dataclass(frozen=True, slots=True)
class Probe:
    """
    One change whose loss is wanted: these channels of the group get the gate `gate` (0: they are removed, 1: nothing
    changes), and constants may get other numbers.
    """

    channels: tuple[int, ...] = ()
    gate: float = 0.0
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)


OPEN = Probe()

LABELS = "onnxprune.labels"
"""The array in the lab that holds the labels, for a loss of the user's own."""


@dataclass(frozen=True)
class Closing:
    """
    How a gate is closed for the channels of a group.

    `input` is the input of the part behind: of the gate, or of the whole closed tensor where `fed` names one that
    comes across. `channels` holds, for each dimension of the group, its channel at each position of `axis`, -1 for
    none. `per_sample` are the positions that a sample had on `batch_axis` when the model was read. `zeros` are what
    a gate closes to, one number or one for each position.
    """

    input: str
    fed: str | None
    axis: int
    rank: int
    batch_axis: int | None
    per_sample: int
    channels: tuple[np.ndarray, ...]
    zeros: tuple[float, ...] = (0.0,)

    def values(self, probe: Probe) -> np.ndarray:
        """The gate at every position of the axis."""
        return gate_values(self.channels, probe)


@dataclass(frozen=True)
class Taking:
    """
    How closed channels are taken off a sink's output: `part` is the sink alone in the lab, and `weight` the file of its
    constant, which has the channels of `data` on its `weight_axis`. `batch_axis` is the output's.
    """

    part: str
    data: str
    axis: int
    weight: str
    weight_axis: int
    output: str
    batch_axis: int | None
    channels: tuple[np.ndarray, ...]


def gate_values(channels: Sequence[np.ndarray], probe: Probe) -> np.ndarray:
    """The gate at every position of an axis, from each dimension's channel there."""
    gates = np.ones(len(channels[0]), np.float32)
    for along in channels if probe.channels else ():
        closed = along == probe.channels[0] if len(probe.channels) == 1 else np.isin(along, probe.channels)
        gates[closed] *= np.float32(probe.gate)
    return gates


@dataclass(frozen=True)
class Split:
    """A cut as a worker needs it: the names of its two parts in the lab, and how they are fed."""

    name: str
    across: tuple[Across, ...]
    closings: tuple[Closing, ...]
    takings: tuple[Taking, ...] = ()
    free: tuple[str, ...] = ()
    kept: Mapping[str, int] = field(default_factory=dict)
    """Numbers of the tensors that may lie in the lab for each portion."""


@dataclass(frozen=True)
class Setting:
    """
    What is the same for all probes.

    `samples` and `loss` come with no sample in them: their arrays lie in the lab, in the order of `arrays`.
    """

    samples: Calibration
    loss: Loss
    arrays: tuple[str, ...]
    threads: int
    provider: str


@dataclass(frozen=True)
class Task:
    """
    Probes of one cut on portions of the samples; `probes_a_run` of them share a run.

    The first is there to be checked: it runs on the first portion only, unless `checks` says on all.
    """

    lab: Address
    setting: Setting
    split: Split
    probes: tuple[Probe, ...]
    portions: tuple[np.ndarray, ...]
    probes_a_run: int
    checks: bool = False


def kept_name(number: int, portion: int) -> str:
    """The array in the lab for what a tensor is on a portion of the samples."""
    return f"{KEPT}{number}.{portion}"
