"""Both models in figures, on the same samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.choosing.plan import Plan
from onnxprune.coupling.couple import Couplings
from onnxprune.errors import UsageError
from onnxprune.probing.calibration import Calibration, Data, gather
from onnxprune.probing.loss_graph import losses_from
from onnxprune.probing.losses import Loss, LossName, UserLoss, outputs_of, prepare_loss
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.reading.graph import held_constants
from onnxprune.reading.numbers import fits_whole
from onnxprune.reporting.report import Figures
from onnxprune.timing.setting import Setting
from onnxprune.verifying.measure import accuracy

MEASURED_SAMPLES = 2048
"""Samples of the data that are used at all, the first ones."""


@dataclass(frozen=True)
class Session:
    """What a model is measured on: the couplings, the samples and the original's outputs for them."""

    couplings: Couplings
    calibration: Calibration
    outputs: Mapping[str, np.ndarray]
    judged_by: Loss | None
    """The loss that is reported of both models; None where no output makes one."""
    setting: Setting
    """In which latency is measured; its threads are those of all runs."""

    @property
    def threads(self) -> int:
        """Of ONNX Runtime; 0 leaves the choice to it."""
        return self.setting.threads


def open_session(
    couplings: Couplings,
    data: Data | Calibration | None,
    *,
    judge: LossName | UserLoss,
    labels: str,
    seed: int,
    setting: Setting,
) -> Session:
    """The samples, the original's outputs for them, and the loss to report."""
    calibration = gather(couplings.graph, data, labels=labels, seed=seed).first(MEASURED_SAMPLES)
    outputs = outputs_of(couplings.graph.model, calibration, threads=setting.threads)
    try:
        judged_by = prepare_loss(couplings.graph, calibration, judge, reference=outputs)
    except UsageError:
        if judge != "auto":
            raise
        return Session(couplings, calibration, outputs, None, setting)
    return Session(couplings, calibration, outputs, judged_by, setting)


def notes_on(session: Session, plan: Plan, scores: Sensitivities | None, *, thinned: bool) -> Iterator[str]:
    """What a user should know of a run besides its figures; `thinned` says that single weights went."""
    labels, judge = session.calibration.labels, session.judged_by
    if session.calibration.synthetic and scores is not None and scores.criterion == "sensitivity":
        yield "No calibration data: scores and checks use random inputs, so expect to lose more accuracy. Pass data."
    elif session.calibration.synthetic:
        yield "No calibration data: the checks and figures are those of random inputs. Pass data."
    if labels is not None and (judge is None or judge.name in ("kl", "mse")):
        yield (
            f"The labels ({labels.dtype} {list(labels.shape)}) are not used: "
            "they are not integers, one class number per sample, that fit an output."
        )
    if not fits_whole(session.couplings.graph.model):
        yield "The model is too large to be held at once: it is run part by part, and its latency is not measured."
    quantized = session.couplings.quantized
    if quantized and plan.removed and not session.calibration.synthetic:
        yield (
            f"{len(quantized)} quantised weights, {quantized[0]!r} among them, are sliced and keep their numbers: only "
            "float layers are refitted. Pruning the float model and then quantising it (--quantize int8) loses less."
        )
    inexact = plan.inexact_groups(session.couplings)
    if inexact:
        named = ", ".join(f"{group.name!r} ({group.inexact.text})" for group in inexact if group.inexact)
        yield f"Inexact groups were pruned, and held against the original with what went masked out: {named}."
    if not plan.removed and not thinned:
        yield "Nothing was removed: the targets hold already."


def figures(
    session: Session,
    model: ModelProto,
    size: int,
    outputs: Mapping[str, np.ndarray],
    *,
    plan: Plan | None = None,
) -> Figures:
    """The model in numbers, its loss that of its outputs; its MACs are read off the polynomial."""
    couplings, judge = session.couplings, session.judged_by
    kept = plan.kept(couplings) if plan else {}
    widths = {dim: len(stay) for dim, stay in kept.items()}
    return Figures(
        macs=couplings.costs.macs.at(widths),
        params=parameter_count(model),
        bytes=size,
        loss=float(losses_from(judge, outputs, session.calibration).mean()) if judge else None,
        accuracy=accuracy(outputs, judge, session.calibration.labels) if judge else None,
    )


def parameter_count(model: ModelProto) -> int:
    """Learned numbers in initializers and Constant nodes, plain or quantised."""
    return sum(constant.size for constant in held_constants(model.graph) if constant.is_weight)
