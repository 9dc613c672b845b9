"""Models measured without pruning: two side by side, or one layer by layer."""

from __future__ import annotations

from dataclasses import replace

from onnxprune.beginning import read_with
from onnxprune.clock import Clock
from onnxprune.coupling.couple import Couplings
from onnxprune.errors import ModelError
from onnxprune.probing.asking import Progress
from onnxprune.probing.calibration import Data, describe, gather
from onnxprune.probing.losses import LossName, UserLoss, outputs_of
from onnxprune.reading.observing import CPU
from onnxprune.reading.read import Model
from onnxprune.reporting.measuring import figures, open_session
from onnxprune.reporting.report import Comparison
from onnxprune.timing.profile import Profile, profile_of
from onnxprune.timing.setting import Setting
from onnxprune.timing.whole import latency as time_in_turn
from onnxprune.verifying.measure import distance


def compare(
    original: Model,
    pruned: Model,
    data: Data | None = None,
    *,
    loss: LossName | UserLoss = "auto",
    labels: str = "labels",
    layers: bool = False,
    seed: int = 0,
    provider: str = CPU,
    batch: int = 1,
    threads: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """
    Measure two models of one interface side by side, with `layers` also layer by layer; the rest is as in `prune`.

    Raises:
        ModelError: the models take different inputs or give different outputs.
    """
    clock = Clock(progress)
    with clock.stage("read and couple"):
        first, arrays = read_with(original, data)
        second, _ = read_with(pruned, arrays)
    if (first.graph.inputs, first.graph.outputs) != (second.graph.inputs, second.graph.outputs):
        raise ModelError(
            "Expected two models with the same inputs and outputs, found "
            f"{interface_text(first)} and {interface_text(second)}. Compare a model with one pruned from it."
        )
    with clock.stage("measure"):
        setting = Setting(provider, batch, threads)
        session = open_session(first, arrays, judge=loss, labels=labels, seed=seed, setting=setting)
        other = replace(session, couplings=second)
        models = first.graph.model, second.graph.model
        after = outputs_of(second.graph.model, session.calibration, threads=threads)
        return Comparison(
            loss_name=session.judged_by.name if session.judged_by else "",
            original=figures(session, models[0], first.graph.file_bytes, session.outputs),
            pruned=figures(other, models[1], second.graph.file_bytes, after),
            latency=time_in_turn(models, session.calibration, setting),
            distance=distance(session.outputs, after),
            samples=len(session.calibration),
            layers=(
                (
                    profile_of(first, session.calibration, setting, progress),
                    profile_of(second, session.calibration, setting, progress),
                )
                if layers
                else None
            ),
        )


def profile(
    model: Model,
    data: Data | None = None,
    *,
    labels: str = "labels",
    seed: int = 0,
    provider: str = CPU,
    batch: int = 1,
    threads: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """
    Where a model's time goes: each layer's, beside what it computes and where its widths are on the stairs.

    Arguments are those of `prune`; data say at which sizes the model is run, where it leaves them open.

    Raises:
        OnnxPruneError: the model cannot be read or run.
    """
    clock = Clock(progress)
    with clock.stage("read and couple"):
        couplings, arrays = read_with(model, data)
        samples = gather(couplings.graph, arrays, labels=labels, seed=seed)
    with clock.stage("time layers"):
        return profile_of(couplings, samples, Setting(provider, batch, threads), progress)


def interface_text(couplings: Couplings) -> str:
    """Inputs and outputs in a line."""
    graph = couplings.graph
    return f"{[describe(port) for port in graph.inputs]} -> {[describe(port) for port in graph.outputs]}"
