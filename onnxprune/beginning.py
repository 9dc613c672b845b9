"""How a run begins: the model is read, run on its samples and timed, and what cannot be is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np

from onnxprune.choosing.eligible import groups_to_prune
from onnxprune.clock import Clock
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import DataError, UsageError
from onnxprune.job import Job
from onnxprune.judging.judgement import Judge, judge_held_out, judge_on
from onnxprune.options import Options
from onnxprune.probing.asking import Progress, refuse_parts
from onnxprune.probing.calibration import Calibration, Data, collected, gather, given_shapes
from onnxprune.probing.losses import LossName, UserLoss
from onnxprune.probing.sensitivities import Sensitivities, check_fit, load_scores
from onnxprune.pruner import Pruner
from onnxprune.reading.numbers import fits_whole
from onnxprune.reading.read import Model, read
from onnxprune.reporting.measuring import Session, open_session
from onnxprune.timing.model import LatencyModel
from onnxprune.timing.stairs import Stairs
from onnxprune.timing.timing import Timing, fast_widths_of, latency_of_widths

DEFAULT_MACS = 0.7
NO_TARGET = f"No target was given: the target is {DEFAULT_MACS:.0%} of the MACs (--macs {DEFAULT_MACS:.0%})."

Arrays = np.ndarray | Mapping[str, np.ndarray] | None


def begin(model: Model, data: Data | None, options: Options, progress: Progress | None) -> Job:
    """Read the model, find its couplings, and run it on the samples that it is pruned with."""
    clock, notes = Clock(progress), list[str]()
    targets, weights = options.targets, options.removed_weights
    with clock.stage("read and couple"):
        couplings, arrays = read_with(model, data)
        if targets.any or weights is None:
            groups_to_prune(couplings, options.limits)
        refuse_quantized(options, couplings)
        scores = scores_given(options, couplings)
        samples = gather(couplings.graph, arrays, labels=options.labels, seed=options.seed)
    timing, couplings = timed(couplings, samples, options, clock)
    check_parts(couplings, options, has_data=data is not None)
    searches = not targets.any and weights is None and (data is not None or options.max_drop is not None)
    with clock.stage("run the original"):
        judge = judge_for(couplings, samples, options, notes, is_wanted=searches)
        if searches and judge is None:
            searches, options = False, replace(options, macs=DEFAULT_MACS)
        elif not searches and not targets.any and weights is None:
            options = replace(options, macs=DEFAULT_MACS)
            notes.append(NO_TARGET)
        session = session_for_pruning(couplings, judge.pruning if judge else samples, options)
    bounded = searches or bool(options.targets.bounds(couplings.costs))
    has_curves = bounded and session.judged_by is not None and fits_whole(couplings.graph.model)
    recipe = options.recipe(has_data=data is not None, has_curves=has_curves)
    evenly = recipe.allocation != "curves" and options.ratio is None and options.threshold is None
    recipe = replace(recipe, limits=timing.within(recipe.limits, evenly=evenly))
    if evenly:
        recipe = replace(recipe, pacing=timing.pacing(couplings, recipe.limits.groups(couplings)))
    if searches and recipe.rounds is None:  # a dozen models are made: each from what was measured once
        recipe = replace(recipe, rounds=1)
    return Job(options, Pruner(session, recipe, clock, scores), clock, judge, searches, tuple(notes))


def timed(couplings: Couplings, samples: Calibration, options: Options, clock: Clock) -> tuple[Timing, Couplings]:
    """What is timed before channels are chosen, fast widths and a bounded latency; and the couplings with it."""
    setting = options.setting
    any_targets = options.targets.any or options.removed_weights is None
    if not any_targets or not fits_whole(couplings.graph.model):
        if options.latency is not None:
            refuse_parts(couplings.graph.model, "a bound on the latency")
        return Timing(), couplings
    groups = groups_to_prune(couplings, options.limits)
    stairs: Mapping[str, Stairs] = {}
    if options.multiple_of == "auto" or options.latency is not None:
        with clock.stage("time widths of layers"):
            stairs = fast_widths_of(couplings, groups, setting, clock.progress)

    @cache
    def measured() -> LatencyModel:
        with clock.stage("time layers"):
            return latency_of_widths(couplings, groups, stairs, samples, setting, clock.progress)

    found = Timing(stairs if options.multiple_of == "auto" else {}, measured)
    if options.latency is None:
        return found, couplings
    return found, replace(couplings, costs=replace(couplings.costs, latency=measured().cost))


def check_parts(couplings: Couplings, options: Options, *, has_data: bool) -> None:
    """
    Refuse, before the model is run, what it cannot be asked for where it is run part by part.

    Raises:
        UsageError: see above.
    """
    model, recipe = couplings.graph.model, options.recipe(has_data=has_data, has_curves=False)
    for is_asked, what in (
        (options.scores is None and recipe.criterion not in ("magnitude", "random"), f"criterion {recipe.criterion}"),
        (recipe.compensate, "refitted layers"),
        (options.allocation == "curves", "width curves"),
        (options.weights is not None, "the removal of single weights"),
        (options.quantize is not None, "eight bits"),
    ):
        if is_asked:
            refuse_parts(model, what)


def refuse_quantized(options: Options, couplings: Couplings) -> None:
    """
    Refuse to quantise what is quantised already.

    Raises:
        UsageError: see above.
    """
    if options.quantize is not None and couplings.quantized:
        raise UsageError(
            f"Expected a float model to quantise, found {len(couplings.quantized)} quantised weights in it, "
            f"{couplings.quantized[0]!r} among them. Leave out --quantize, or pass the float model it was made from."
        )


def judge_for(
    couplings: Couplings, samples: Calibration, options: Options, notes: list[str], *, is_wanted: bool
) -> Judge | None:
    """
    The judge of the models, if there is to be one.

    Where nobody asked for one in so many words and the samples are too few, there is none, and a note says so.
    """
    model, asked = couplings.graph.model, options.max_drop is not None or options.eval_data is not None
    if not asked and not is_wanted:
        return None
    try:
        if options.eval_data is None:
            judge = judge_held_out(
                model, samples, options.allowed, metric=options.metric, seed=options.seed, threads=options.threads
            )
        else:
            judging = gather(couplings.graph, collected(options.eval_data), labels=options.labels, seed=options.seed)
            judge = judge_on(model, samples, judging, options.allowed, metric=options.metric, threads=options.threads)
    except DataError as failure:
        if asked:
            raise
        notes.append(f"{NO_TARGET} To prune as far as the accuracy allows instead: {failure}")
        return None
    notes.extend(judge.notes())
    return judge


def scores_given(options: Options, couplings: Couplings) -> Sensitivities | None:
    """The scores measured before, checked against the model."""
    scores = options.scores
    if isinstance(scores, str | os.PathLike):
        return load_scores(scores, couplings)
    if scores is not None:
        check_fit(scores, couplings, "the scores given")
    return scores


def session_for_pruning(couplings: Couplings, data: Data | Calibration | None, options: Options) -> Session:
    """The model on its samples; reported is the user's own loss, or the one that suits the data, whatever is probed."""
    judge: LossName | UserLoss = options.loss if callable(options.loss) else "auto"
    return open_session(couplings, data, judge=judge, labels=options.labels, seed=options.seed, setting=options.setting)


def read_with(model: Model, data: Data | None) -> tuple[Couplings, Arrays]:
    """The model, observed at the sizes of the data; and the data, an iterable read to its end."""
    arrays = collected(data)
    return couple(read(model, input_shapes=given_shapes(arrays))), arrays
