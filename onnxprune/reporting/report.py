"""Everything about one run, for people and programs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from onnxprune.judging.judgement import Judgement
from onnxprune.reading.records import STRICT, json_text
from onnxprune.repairing.steps import Repaired
from onnxprune.sparsifying.sparsify import SparseLayer
from onnxprune.timing.profile import Profile
from onnxprune.timing.speed import Speed
from onnxprune.timing.whole import Latency
from onnxprune.verifying.verify import Verdict

Settings = Mapping[str, str | bool | float | int | None]


@dataclass(frozen=True, config=STRICT)
class Figures:
    """One model in numbers: MACs of one sample, parameters, bytes, loss, accuracy (0 to 1) where labels fit."""

    macs: float
    params: float
    bytes: int
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True, config=STRICT)
class GroupReport:
    """Channels of one group before and after; `inexact` says why a removal changes what the others compute, if so."""

    name: str
    before: int
    after: int
    inexact: str = ""


@dataclass(frozen=True, config=STRICT)
class WeightsFigures:
    """
    What single weights that are zero cost and save: `zeros` of `size` numbers in matrices and kernels.

    `figures` are those of the model with the zeros; its parameters count them, as its dense kernels multiply them.
    `bytes_sparse` are those of the file with sparse tensors where these are smaller.
    """

    zeros: int
    size: int
    bytes_sparse: int
    figures: Figures
    layers: tuple[SparseLayer, ...]


@dataclass(frozen=True, config=STRICT)
class QuantizedFigures:
    """The model in eight bits, its latency beside the original's, and the distance of its outputs as in `Report`."""

    figures: Figures
    latency: Latency | None
    distance: float


@dataclass(frozen=True, config=STRICT)
class Report:
    """
    What one pruning did.

    `settings` are the options that decided it, `notes` what a user should know, `skipped` the inexact groups that were
    left alone with the reason, `refitted` what became of each layer that was to be refitted, `seconds` the time of each
    stage. `distance` is the relative distance of the outputs from the original's. `loss_name` names the loss in the
    figures. `pruned` are the figures once channels are gone; `weights` and `quantized` those of the steps after that,
    if there are any. `judgement` is what the model does on samples that pruning did not use, `bytes`
    the size of the model as shipped. `latency` is that of the setting asked for, `speed` says more of it; both are None
    for a model that is run part by part.
    """

    format: Literal["onnxprune-report"]
    version: Literal[1]
    settings: Settings
    loss_name: str
    original: Figures
    pruned: Figures
    latency: Latency | None
    speed: Speed | None
    distance: float
    groups: tuple[GroupReport, ...]
    skipped: Mapping[str, str]
    refitted: tuple[Repaired, ...]
    weights: WeightsFigures | None
    quantized: QuantizedFigures | None
    judgement: Judgement | None
    bytes: int
    verdict: Verdict
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    def to_json(self) -> str:
        """The report as JSON text."""
        return json_text(_ADAPTER, self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


@dataclass(frozen=True, config=STRICT)
class Comparison:
    """Two models with one interface, on the same samples; `distance` as in `Report`, `layers` of both if wanted."""

    loss_name: str
    original: Figures
    pruned: Figures
    latency: Latency | None
    distance: float
    samples: int
    layers: tuple[Profile, Profile] | None = None

    def to_json(self) -> str:
        """The comparison as JSON text."""
        return json_text(_COMPARISON, self)


_ADAPTER: TypeAdapter[Report] = TypeAdapter(Report)
_COMPARISON: TypeAdapter[Comparison] = TypeAdapter(Comparison)
