"""The stages one after another: read, couple, probe, choose, rewrite, verify, report."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields, replace
from typing import Any, Literal

from onnxprune.beginning import begin, read_with, session_for_pruning
from onnxprune.choosing.choose import AllocationName
from onnxprune.choosing.plan import Plan
from onnxprune.choosing.targets import Bound, Limits
from onnxprune.clock import Clock
from onnxprune.errors import DataError, UsageError
from onnxprune.finishing import Further, finished, made
from onnxprune.job import PruneResult
from onnxprune.judging.user_metrics import UserMetric
from onnxprune.options import DEFAULT_CONFIDENCE, Options
from onnxprune.probing.asking import Progress
from onnxprune.probing.calibration import Data
from onnxprune.probing.losses import LossName, UserLoss
from onnxprune.probing.samples import Samples
from onnxprune.probing.sensitivities import Criterion, Sensitivities
from onnxprune.pruner import Pruner, Recipe
from onnxprune.reading.numbers import fits_whole, whole
from onnxprune.reading.observing import CPU
from onnxprune.reading.read import Model
from onnxprune.reporting.report import Settings

DEFAULT_SWEEP = ("90%", "70%", "50%", "30%")


def prune(
    model: Model,
    data: Data | None = None,
    *,
    macs: Bound = None,
    params: Bound = None,
    size: Bound = None,
    latency: Bound = None,
    ratio: float | None = None,
    threshold: float | str | None = None,
    max_drop: float | str | None = None,
    confidence: float | str = DEFAULT_CONFIDENCE,
    metric: str | UserMetric | None = None,
    eval_data: Data | None = None,
    criterion: Criterion | None = None,
    scores: Sensitivities | str | os.PathLike[str] | None = None,
    loss: LossName | UserLoss = "distance",
    labels: str = "labels",
    delta: float | None = None,
    order: int = 1,
    probe_samples: Samples = "auto",
    allocation: AllocationName | None = None,
    rounds: int | None = None,
    compensate: bool | None = None,
    weights: str | float | None = None,
    sparse: bool = False,
    quantize: Literal["int8"] | None = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
    inexact: bool = False,
    min_channels: int = 1,
    multiple_of: int | Literal["auto"] = "auto",
    jobs: int | None = None,
    memory: int | str | None = None,
    provider: str = CPU,
    batch: int = 1,
    executor: Executor | None = None,
    cache: str | os.PathLike[str] | None = None,
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
            all: as `max_drop` says; without data, 70 %.
        params: upper bound on parameters, learned numbers plain or quantised, likewise.
        size: upper bound on the bytes of the file, likewise ("5MB").
        latency: upper bound on the time of a run, likewise ("60%", "3.5ms", or a number above 1 of milliseconds). A
            model of latency is built from the layers of this model, timed on this machine at several widths; the plan
            is measured, and mended until it holds. See `provider`, `batch` and `threads`.
        ratio: share of channels to remove in every group, 0 to below 1; what stays is rounded down.
        threshold: channels whose score is below it go: a number, "median" or "mean" of all scores.
        max_drop: how much of the metric may be lost on samples that pruning did not use, a share such as "1%". Alone:
            prune as far as that allows; "1%" if there is data and nothing else is asked. Beside other targets: they are
            pruned to, and it is an error if more is lost, or may be.
        confidence: of the statement that no more is lost, above 50 %.
        metric: "accuracy" and "top-5" (they need labels), "agreement" with the original, "cosine", "mse", "psnr", or a
            callable `metric(outputs, labels)` that returns a number for each sample, or its name "module:function".
            Default: accuracy where labels fit, else agreement for classes, else cosine.
        eval_data: samples to judge on, in any form of `data`; without, a part of `data` is held back from pruning.
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
        provider: execution provider of ONNX Runtime, for the probes and for latency.
        batch: samples of a run whose latency is measured, where the model leaves that open.
        executor: runs the probes in place of processes of our own, such as a Dask cluster's `client.get_executor()`.
        cache: folder for a journal of what probes found; it is used again by a run on the same model and samples.
        only, skip: globs on group, layer and weight names.
        inexact: prune inexact groups too, whose removal changes what other channels compute (a LayerNorm's mean, say).
            They are probed, and proven, in the masked form of the model, which takes sums and means over what is kept.
        min_channels: channels that stay in each group at least.
        multiple_of: widths are multiples of it. "auto": of the smallest step that keeps each group's layers on fast
            kernels, and of a larger one where that costs the same time and is fine enough; found by timing them once
            on this machine. 1: any width.
        allocation: how wide each group stays under the bounds. "curves" (default with data): at the least sum of
            losses, measured at several widths of each group after its readers were refitted; "global": channels go by
            loss per cost, for criteria that are losses; "uniform": evenly.
        rounds: how often to score, choose and refit on the way to the bounds, 1 or more; each round removes the same
            share of what is left. Default: 3 for bounds below 40 %, else 1, as in a search for `max_drop`.
        compensate: refit the layers behind what was pruned by least squares on the data, from their new inputs to the
            original's outputs; then the model before that equals the zeroed original, and only these weights differ.
            Default: where there is data.
        weights: single weights to set to zero after that: a share "50%" of all of them, or a pattern "2:4" (of every
            four that follow each other, at most two stay). By the OBS saliency, or by magnitude if that is the
            criterion; the others are refitted. With `params`, that bound counts the numbers that are not zero. With
            no other target, no channels go.
        sparse: store weights as sparse tensors where that makes the file smaller.
        quantize: "int8": quantise the model at the end with ONNX Runtime, on the same data.
        seed: of made-up inputs, of the samples held back and of the random criterion.
        threads: of ONNX Runtime, for latency too; 0 leaves the choice to it.
        progress: called as `progress(what, done, total)`.

    Raises:
        OnnxPruneError: whatever goes wrong, in one of its subclasses, each with a message for the user.
    """
    options = Options(
        macs=macs, params=params, size=size, latency=latency, ratio=ratio, threshold=threshold,
        max_drop=max_drop, confidence=confidence,
        metric=metric, eval_data=eval_data, criterion=criterion, scores=scores, loss=loss, labels=labels, delta=delta,
        order=order, probe_samples=probe_samples, allocation=allocation, rounds=rounds, compensate=compensate,
        weights=weights, sparse=sparse, quantize=quantize, only=only, skip=skip, inexact=inexact,
        min_channels=min_channels, multiple_of=multiple_of, jobs=jobs, memory=memory, provider=provider,
        batch=batch, executor=executor, cache=cache, seed=seed, threads=threads,
    )  # fmt: skip
    return begin(model, data, options, progress).result()


def sweep(
    model: Model,
    data: Data | None = None,
    *,
    macs: Sequence[Bound] | None = None,
    latency: Sequence[Bound] = (),
    progress: Progress | None = None,
    **options: Any,
) -> tuple[PruneResult, ...]:
    """
    One model for each of several bounds on the MACs or the latency, from what is measured once on the original.

    Args:
        model, data, progress: as `prune` takes them.
        macs: bounds on the MACs. Default: 90%, 70%, 50% and 30%, if there are none on the latency.
        latency: bounds on the latency, whose models follow those of the MACs.
        options: any other of `prune`'s but those that say how far to prune.

    Raises:
        OnnxPruneError: as `prune`, and a bound that cannot be reached.
    """
    if macs is None:
        macs = () if latency else DEFAULT_SWEEP
    if not (macs or latency):
        raise UsageError("Expected bounds to sweep over, found none. Give some: --macs 70%,50%,30%.")
    refuse_unknown(options, but=("macs", "params", "size", "latency", "ratio", "threshold", "max_drop"))
    asked = [
        *(Options(**options, macs=bound) for bound in macs),
        *(Options(**options, latency=bound) for bound in latency),
    ]
    job = begin(model, data, asked[-1], progress)  # the last is one on the latency, if any is: that is measured then
    return tuple(replace(job, options=one, clock=job.clock.anew()).result() for one in asked)


def refuse_unknown(options: Mapping[str, object], *, but: Sequence[str]) -> None:
    """Refuse keywords that mean nothing here."""
    known = [entry.name for entry in fields(Options) if entry.name not in but]
    for name in options:
        if name not in known:
            raise UsageError(f"Expected options among {', '.join(known)}, found {name!r}.")


def apply(
    model: Model,
    plan: Plan,
    data: Data | None = None,
    *,
    loss: LossName | UserLoss = "distance",
    labels: str = "labels",
    compensate: bool | None = None,
    seed: int = 0,
    provider: str = CPU,
    batch: int = 1,
    threads: int = 0,
    progress: Progress | None = None,
) -> PruneResult:
    """
    Repeat the pruning that a plan describes, bit for bit, and check it like any other.

    Arguments are those of `prune`; by default layers are refitted where the plan says that they were, which takes the
    same data. Single weights and eight bits are not part of a plan.

    Raises:
        PlanError: the plan was made for another model.
        DataError: layers are to be refitted, and there is no data.
    """
    if not isinstance(plan, Plan):
        raise UsageError(f"Expected a Plan, found {plan!r}. Load one with onnxprune.choosing.plan.load_plan.")
    clock = Clock(progress)
    with clock.stage("read and couple"):
        couplings, arrays = read_with(model, data)
        plan.kept(couplings)
    options = Options(loss=loss, labels=labels, seed=seed, provider=provider, batch=batch, threads=threads)
    session = session_for_pruning(couplings, arrays, options)
    compensate = bool(plan.refitted) if compensate is None else compensate
    if compensate and data is None:
        raise DataError(
            "Expected the data that layers were refitted on, found none: the plan names weights that got new numbers. "
            "Pass --data, or --no-compensate for the plain slices."
        )
    pruned = Pruner(session, Recipe(Limits(), compensate=compensate), clock).refitted(replace(plan, refitted=()))
    settings: Settings = {"criterion": "plan", "seed": seed, "compensate": compensate}
    done = made(pruned, Further(), session, clock)
    report = finished(session, done, settings, (), clock)
    shipped = whole(done.model) if fits_whole(couplings.graph.model) else done.model
    return PruneResult(shipped, done.plan, report, pruned.scores, couplings)
