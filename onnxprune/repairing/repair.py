"""
Refit the layers behind what was pruned, so that they make what they made before.

Layer by layer, in graph order, each from its input in the pruned model, as repaired so far, to its output in the
original::

    original   x ──► layer ──► y            wanted
    pruned     x' ─► layer with W', b' ──► y'   as close to y as least squares can bring it

No labels, no gradients. A layer stays as it was where the new weights are no better on samples that they were not
fitted to.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass

from onnx import ModelProto

from onnxprune.choosing.plan import Plan
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration
from onnxprune.repairing.answers import answer_steps
from onnxprune.repairing.linear import linear_steps
from onnxprune.repairing.logits import logits_steps
from onnxprune.repairing.recurrent import recurrent_steps
from onnxprune.repairing.rows import REPAIR_SAMPLES
from onnxprune.repairing.side_by_side import side_by_side_steps
from onnxprune.repairing.standardized import standardized_steps
from onnxprune.repairing.steps import Refit, Repaired, Step
from onnxprune.rules.axes import Dim


@dataclass(frozen=True)
class Repair:
    """The repaired model, what became of each layer, and the constants that have new numbers."""

    model: ModelProto
    layers: tuple[Repaired, ...]
    constants: tuple[str, ...]

    @property
    def refitted(self) -> int:
        """How many layers have new weights."""
        return sum(layer.penalty is not None for layer in self.layers)


def repair(
    couplings: Couplings,
    plan: Plan,
    pruned: ModelProto,
    calibration: Calibration,
    *,
    threads: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Repair:
    """
    Refit every layer of the pruned model that reads pruned channels, or what such layers made.

    Only numbers of weights and biases change, and a node may come to read a bias. The original is the teacher, and
    labels are not used.

    Source: He et al. 2017, Channel Pruning for Accelerating Very Deep Neural Networks, section 3.2 (layer by layer,
    each from the inputs that it gets in the pruned model).
    """
    kept = plan.kept(couplings)
    steps = steps_of(couplings, kept.keys())
    model = ModelProto()
    model.CopyFrom(pruned)
    samples = calibration.first(REPAIR_SAMPLES)
    found: list[Refit] = []
    for number, step in enumerate(steps):
        found.extend(step.refit(model, kept, samples, threads))
        if progress:
            progress("refit layers", number + 1, len(steps))
    constants = dict.fromkeys(name for refit in found for name in refit.constants)
    return Repair(model, tuple(refit.layer for refit in found), tuple(constants))


def steps_of(couplings: Couplings, pruned: Set[Dim]) -> tuple[Step, ...]:
    """Every part that can be refitted, in graph order, from the first on that reads a pruned Dim."""
    every: tuple[Step, ...] = (
        *linear_steps(couplings),
        *side_by_side_steps(couplings),
        *recurrent_steps(couplings),
        *standardized_steps(couplings),
        *logits_steps(couplings),
        *answer_steps(couplings),
    )
    steps = sorted(every, key=lambda step: step.position)
    first = next((number for number, step in enumerate(steps) if not pruned.isdisjoint(step.reads)), len(steps))
    return tuple(steps[first:])
