"""Steps of a repair: parts of a model that can be given better weights, one after another in graph order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.probing.calibration import Calibration
from onnxprune.rules.axes import Dim


@dataclass(frozen=True, slots=True)
class Repaired:
    """
    What became of one layer: its squared error over the energy of its outputs, on samples held out, before and after.

    `penalty` is that of the ridge, the largest where several were solved for, 0 where there is no ridge; None where the
    layer stayed as it was.
    """

    layer: str
    before: float
    after: float
    penalty: float | None


@dataclass(frozen=True, slots=True)
class Refit:
    """What became of a layer, and the constants of the model that have new numbers."""

    layer: Repaired
    constants: tuple[str, ...]


class Step(Protocol):
    """A part of the original that can be refitted: where it stands, what it reads, and how."""

    @property
    def position(self) -> int:
        """Of its node in the graph; steps are taken in this order."""

    @property
    def reads(self) -> frozenset[Dim]:
        """The Dims that it sums over; steps are taken from the first on that reads a pruned one."""

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """
        Give the part better weights, in place in `model`, which is the pruned model as repaired so far.

        Nothing comes where nothing can change.
        """
