"""What criteria may look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.asking import Effort, Inquiry, Progress, inquiry_for
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.losses import Loss, LossName, UserLoss
from onnxprune.repairing.readings import Readings


@dataclass(frozen=True)
class Evidence:
    """
    A model and its samples, and how it is probed.

    `outputs` are those that losses compare with: the original's, also where the model is one pruned from it.
    """

    couplings: Couplings
    calibration: Calibration
    outputs: Mapping[str, np.ndarray]
    loss: LossName | UserLoss = "distance"
    delta: float = 1.0
    order: int = 1
    effort: Effort = field(default_factory=Effort)
    seed: int = 0
    progress: Progress | None = None

    @cached_property
    def readings(self) -> Readings:
        """What the layers of the model read."""
        return Readings(self.couplings, self.calibration, threads=self.effort.means.threads)

    def inquiry(self, probes: int, loss: LossName | UserLoss | Loss | None = None) -> Inquiry:
        """For so many probes of a loss; of the one that is set if none is named."""
        asked = self.loss if loss is None else loss
        return inquiry_for(
            self.couplings, self.calibration, asked, self.effort, self.progress, probes=probes, outputs=self.outputs
        )


def channel_count(groups: Sequence[Group]) -> int:
    """Channels of all groups."""
    return sum(group.size for group in groups)
