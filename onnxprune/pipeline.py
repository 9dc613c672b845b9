"""The stages one after another: read, couple, probe, choose, rewrite, verify, report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import ModelProto

from onnxprune.choosing.choose import AllocationName, groups_to_prune
from onnxprune.choosing.plan import Plan
from onnxprune.choosing.targets import Bound, Limits, Targets
from onnxprune.clock import Clock
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import ModelError, VerificationError
from onnxprune.files import check_target
from onnxprune.ordering.criteria import check_criterion
from onnxprune.probing.asking import Effort, Progress
from onnxprune.probing.calibration import Data, collected, describe, given_shapes
from onnxprune.probing.engine.means import Means
from onnxprune.probing.losses import LossName, UserLoss, outputs_of
from onnxprune.probing.probe import step
from onnxprune.probing.samples import Samples
from onnxprune.probing.sensitivities import Criterion, Sensitivities, check_fit, load_scores
from onnxprune.pruner import Pruned, Pruner, Recipe
from onnxprune.reading.observing import CPU
from onnxprune.reading.read import Model, read
from onnxprune.reporting.measuring import Session, figures, notes_on, open_session
from onnxprune.reporting.report import Comparison, GroupReport, Report
from onnxprune.rewriting.saving import save_model
from onnxprune.verifying.measure import distance, latency
from onnxprune.verifying.verify import verify

DEFAULT_MACS = 0.7

Arrays = np.ndarray | Mapping[str, np.ndarray] | None
Settings = Mapping[str, str | bool | float | int | None]


@dataclass(frozen=True)
class PruneResult:
    """
    A pruned model that passed its own check.

    `model` is the ModelProto, `plan` says which channels stay, `report` holds all figures, `scores` the channel scores
    that decided (None when a plan was applied).
    """

    model: ModelProto
    plan: Plan
    report: Report
    scores: Sensitivities | None
    couplings: Couplings = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the model; the file appears whole or not at all.

        Raises:
            UsageError: the path is the input's own, or its folder cannot be written.
        """
        check_target(path, source=self.couplings.graph.path)
        save_model(self.model, path)


def prune(
    model: Model,
    data: Data | None = None,
    *,
    macs: Bound = None,
    params: Bound = None,
    size: Bound = None,
    ratio: float | None = None,
    threshold: float | str | None = None,
    criterion: Criterion | None = None,
    scores: Sensitivities | str | os.PathLike[str] | None = None,
    loss: LossName | UserLoss = "distance",
    labels: str = "labels",
    delta: float | None = None,
    order: int = 1,
    probe_samples: Samples = "auto",
    jobs: int | None = None,
    memory: int | str | None = None,
    provider: str = CPU,
    executor: Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    min_channels: int = 1,
    multiple_of: int = 1,
    allocation: AllocationName | None = None,
    rounds: int | None = None,
    compensate: bool | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> PruneResult:
    """
    Prune a model, prove the result equal to the zeroed original, and measure both.

    Args:
        model: a path, the bytes of an ONNX file, or a ModelProto; never changed.
        data: calibration samples: an `.npz` path, a dict of arrays named like the inputs (first axis: samples), one
            array for a model of one input, an iterable of feeds, or an object with `get_next()` like ONNX Runtime's
            `CalibrationDataReader`. None: seeded random inputs, which is noted in the report.
        macs: upper bound on multiply-accumulates: a share ("50%", 0.5) or an amount ("3M", 3e6). With no target at
            all, 70 %.
        params: upper bound on float parameters, likewise.
        size: upper bound on the bytes of the file, likewise ("5MB").
        ratio: share of channels to remove in every group, 0 to below 1.
        threshold: channels whose score is below it go: a number, "median" or "mean" of all scores.
        criterion: what orders the channels of a group. "sensitivity" (finite-difference loss probes), "obs" (what the
            layers that read a channel lose when they are refitted without it), "magnitude", "activation", "taylor",
            "redundancy", "forgetting" or "random"; see `onnxprune.ordering.criteria` for sources. "auto": obs and
            sensitivity, for each group the one that loses less by its width curve. Default: auto where layers are
            refitted, else, and for a threshold, sensitivity.
        scores: scores measured before, or their JSON file; `criterion` is then theirs.
        loss: what probes measure. "distance" (default): KL to the model's own outputs for logits or probabilities, else
            their relative squared error. "auto": cross-entropy if integer labels fit an output, else the distance.
            "cross-entropy", "mse", "kl". Or a callable `loss(outputs, original_outputs, labels)` on dicts of arrays
            that returns one float per sample.
        labels: name of the array with the labels in `data`.
        delta: how far a gate closes, in (0, 1]; 1 (the default) measures removal, a small number the derivative.
        order: 1, or 2 to score by second derivatives, whose delta is 0.1 if nothing is said.
        probe_samples: how many samples probes run on, those that tell most: a number, "all", or "auto": 32, and more
            where that costs little.
        jobs: processes that probe at most; None: one for each core.
        memory: what they may take together, in bytes or "4GB"; None: half of what is free.
        provider: execution provider of ONNX Runtime for the probes.
        executor: runs the probes in place of processes of our own, such as a Dask cluster's `client.get_executor()`.
        cache: folder for a journal of what probes found; it is used again by a run on the same model and samples.
        only, skip: globs on group, layer and weight names.
        min_channels, multiple_of: widths stay at least this wide and multiples of that.
        allocation: how wide each group stays under the bounds. "curves" (default with data): at the least sum of
            losses, measured at several widths of each group after its readers were refitted; "global": channels go by
            loss per cost, for criteria that are losses; "uniform": evenly.
        rounds: how often to score, choose and refit on the way to the bounds, 1 or more; each round removes the same
            share of what is left. Default: 3 for bounds below 40 %, else 1.
        compensate: refit the layers behind what was pruned by least squares on the data, from their new inputs to the
            original's outputs; then the model before that equals the zeroed original, and only these weights differ.
            Default: where there is data.
        seed: of made-up inputs and of the random criterion.
        threads: of ONNX Runtime; 0 leaves the choice to it.
        progress: called as `progress(what, done, total)`.

    Raises:
        OnnxPruneError: whatever goes wrong, in one of its subclasses, each with a message for the user.
    """
    clock, notes = Clock(progress), list[str]()
    targets = Targets(macs=macs, params=params, size=size, ratio=ratio, threshold=threshold)
    if not targets.any:
        targets = replace(targets, macs=DEFAULT_MACS)
        notes.append(f"No target was given: the target is {DEFAULT_MACS:.0%} of the MACs (--macs {DEFAULT_MACS:.0%}).")
    if criterion is not None:
        check_criterion(criterion)
    compensate = data is not None if compensate is None else compensate
    recipe = Recipe(
        limits=Limits(globs(only), globs(skip), min_channels, multiple_of),
        criterion=criterion or ("auto" if compensate and threshold is None else "sensitivity"),
        loss=loss,
        delta=step(delta, order),
        order=order,
        effort=Effort(probe_samples, Means(jobs, memory, threads, provider, executor), cache),
        allocation=allocation or ("curves" if data is not None and is_bounded(targets) else None),
        rounds=rounds,
        compensate=compensate,
        seed=seed,
    )
    with clock.stage("read and couple"):
        couplings, arrays = read_with(model, data)
        groups_to_prune(couplings, recipe.limits)
        if isinstance(scores, str | os.PathLike):
            scores = load_scores(scores, couplings)
        if scores is not None:
            check_fit(scores, couplings, "the scores given")
    with clock.stage("run the original"):
        session = open_session(couplings, arrays, judge=judge_of(loss), labels=labels, seed=seed, threads=threads)
    pruner = Pruner(session, recipe, clock, scores)
    pruned = pruner.to(targets)
    return finished(session, pruned, settings_of(targets, recipe, pruned), (*notes, *pruner.notes), clock)


def apply(
    model: Model,
    plan: Plan,
    data: Data | None = None,
    *,
    loss: LossName | UserLoss = "distance",
    labels: str = "labels",
    compensate: bool | None = None,
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> PruneResult:
    """
    Repeat the pruning that a plan describes, bit for bit, and check it like any other.

    Arguments are those of `prune`; by default layers are refitted where the plan says that they were.

    Raises:
        PlanError: the plan was made for another model.
    """
    clock = Clock(progress)
    with clock.stage("read and couple"):
        couplings, arrays = read_with(model, data)
        plan.kept(couplings)
    session = open_session(couplings, arrays, judge=judge_of(loss), labels=labels, seed=seed, threads=threads)
    compensate = bool(plan.refitted) if compensate is None else compensate
    pruned = Pruner(session, Recipe(Limits(), compensate=compensate), clock).refitted(replace(plan, refitted=()))
    settings: Settings = {"criterion": "plan", "seed": seed, "compensate": compensate}
    return finished(session, pruned, settings, (), clock)


def read_with(model: Model, data: Data | None) -> tuple[Couplings, Arrays]:
    """The model, observed at the sizes of the data; and the data, an iterable read to its end."""
    arrays = collected(data)
    return couple(read(model, input_shapes=given_shapes(arrays))), arrays


def judge_of(loss: LossName | UserLoss) -> LossName | UserLoss:
    """The loss that is reported: the user's own, or the one that suits the data, whatever is probed."""
    return loss if callable(loss) else "auto"


def finished(session: Session, pruned: Pruned, settings: Settings, notes: Sequence[str], clock: Clock) -> PruneResult:
    """Check the model, measure both, report; a model that fails its check goes no further."""
    couplings, plan, model = session.couplings, pruned.plan, pruned.model
    with clock.stage("verify"):
        verdict = verify(couplings, plan, model, session.calibration)
    if not verdict.passed:
        listed = "".join(f"\n  - {failure}" for failure in verdict.failures)
        raise VerificationError(
            f"The pruned model failed its own check, so nothing was written:{listed}\n"
            "Leave out the groups at fault with --skip, and please report the model."
        )
    with clock.stage("measure"):
        after = outputs_of(model, session.calibration, threads=session.threads)
        timed = latency((couplings.graph.model, model), session.calibration, threads=session.threads)
        original = figures(session, couplings.graph.model, couplings.graph.file_bytes, session.outputs)
        smaller = figures(session, model, model.ByteSize(), after, plan=plan)
    report = Report(
        format="onnxprune-report",
        version=1,
        settings=settings,
        loss_name=session.judged_by.name if session.judged_by else "",
        original=original,
        pruned=smaller,
        latency=timed,
        distance=distance(session.outputs, after),
        groups=tuple(GroupReport(group.name, group.size, len(group.kept)) for group in plan.groups if group.exact),
        skipped={group.name: group.inexact.text for group in couplings.groups if group.inexact is not None},
        refitted=pruned.refitted,
        verdict=verdict,
        notes=(*notes, *notes_on(session, plan, pruned.scores)),
        seconds=clock.seconds,
    )
    return PruneResult(model, plan, report, pruned.scores, couplings)


def compare(
    original: Model,
    pruned: Model,
    data: Data | None = None,
    *,
    loss: LossName | UserLoss = "auto",
    labels: str = "labels",
    seed: int = 0,
    threads: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """
    Measure two models of one interface side by side; arguments are those of `prune`.

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
        session = open_session(first, arrays, judge=loss, labels=labels, seed=seed, threads=threads)
        other = replace(session, couplings=second)
        models = first.graph.model, second.graph.model
        after = outputs_of(second.graph.model, session.calibration, threads=threads)
        return Comparison(
            loss_name=session.judged_by.name if session.judged_by else "",
            original=figures(session, models[0], first.graph.file_bytes, session.outputs),
            pruned=figures(other, models[1], second.graph.file_bytes, after),
            latency=latency(models, session.calibration, threads=threads),
            distance=distance(session.outputs, after),
            samples=len(session.calibration),
        )


def interface_text(couplings: Couplings) -> str:
    """Inputs and outputs in a line."""
    graph = couplings.graph
    return f"{[describe(port) for port in graph.inputs]} -> {[describe(port) for port in graph.outputs]}"


def settings_of(targets: Targets, recipe: Recipe, pruned: Pruned) -> Settings:
    """What the report says of how a model was pruned."""
    scores = pruned.scores
    assert scores is not None
    return {
        "macs": spelled(targets.macs),
        "params": spelled(targets.params),
        "size": spelled(targets.size),
        "ratio": targets.ratio,
        "threshold": targets.threshold,
        "criterion": scores.criterion,
        "loss": scores.loss or None,
        "delta": scores.delta,
        "order": scores.order,
        "probe samples": scores.samples,
        "allocation": recipe.allocation,
        "rounds": recipe.rounds,
        "compensate": recipe.compensate,
        "seed": recipe.seed,
    }


def is_bounded(targets: Targets) -> bool:
    """Is there an upper bound among the targets?"""
    return any(bound is not None for bound in (targets.macs, targets.params, targets.size))


def globs(given: str | Sequence[str]) -> tuple[str, ...]:
    """One glob or several."""
    return (given,) if isinstance(given, str) else tuple(given)


def spelled(bound: Bound) -> str | float | int | None:
    """A bound as the user gave it."""
    return None if bound is None else bound if isinstance(bound, str | float | int) else str(bound)
