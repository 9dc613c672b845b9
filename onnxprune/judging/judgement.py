"""The judge of pruned models, who keeps the samples that pruning must not see; and what he finds, for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass

import numpy as np
from onnx import ModelProto
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from onnxprune.errors import DataError, UsageError
from onnxprune.judging.allowance import Allowance
from onnxprune.judging.answers import evident_answers, labelled_answers
from onnxprune.judging.holding_out import FLIPS_TO_SPARE, hold_out, require_enough
from onnxprune.judging.intervals import Drop, drop_of, expected_upper, fewest_samples
from onnxprune.judging.metrics import Metric, Outputs, prepare_metric
from onnxprune.judging.searching import Found, Item, Trial
from onnxprune.judging.user_metrics import UserMetric
from onnxprune.probing.calibration import Calibration
from onnxprune.probing.losses import outputs_of
from onnxprune.reading.records import STRICT, json_text


@dataclass(frozen=True, config=STRICT)
class Judgement:
    """
    What a pruned model still does, on samples that pruning did not use.

    `original` and `pruned` are what the metric says of both on average; `drop` what was lost, and at most how much at
    this confidence; `held_out` says that the samples were held back from the data, and are not samples of their own.
    `trials` are the models that were looked at on the way, from large to small.
    """

    metric: str
    limit: float
    confidence: float
    original: float
    pruned: float
    drop: Drop
    samples: int
    held_out: bool
    trials: tuple[Trial, ...] = ()

    @property
    def within_limit(self) -> bool:
        """Is it shown that the drop is small enough?"""
        return self.drop.upper <= self.limit

    def to_json(self) -> str:
        """The judgement as JSON text."""
        return json_text(TypeAdapter(Judgement), self)


@plain_dataclass(frozen=True)
class Judge:
    """
    What pruned models are judged by.

    `pruning` are the samples to prune with, which are rehearsed on by `rehearsed_by`; `judging` are the others, which
    are judged on by `judged_by`.
    """

    allowed: Allowance
    pruning: Calibration
    judging: Calibration
    rehearsed_by: Metric
    judged_by: Metric
    held_out: bool
    threads: int = 0

    def rehearse(self, model: ModelProto) -> float:
        """About the bound of the drop that is to be expected of the model, from the samples that pruning used."""
        lost = self.rehearsed_by.losses(outputs_of(model, self.pruning, threads=self.threads))
        return expected_upper(lost, self.allowed.confidence, self.rehearsed_by.kind, len(self.judging))

    def drop(self, model: ModelProto) -> Drop:
        """The drop of the model on the samples that pruning did not use."""
        return self.drop_in(outputs_of(model, self.judging, threads=self.threads))

    def drop_in(self, outputs: Outputs) -> Drop:
        """The drop, if these are the model's outputs for the samples to judge on."""
        return drop_of(self.judged_by.losses(outputs), self.allowed.confidence, self.judged_by.kind)

    def judgement(self, model: ModelProto, found: Found[Item] | None = None) -> Judgement:
        """Everything to report about a model, and about the search that found it if there was one."""
        outputs = outputs_of(model, self.judging, threads=self.threads)
        return Judgement(
            metric=self.judged_by.name,
            limit=self.allowed.limit,
            confidence=self.allowed.confidence,
            original=float(self.judged_by.original().mean()),
            pruned=float(self.judged_by.values(outputs).mean()),
            drop=self.drop_in(outputs),
            samples=len(self.judging),
            held_out=self.held_out,
            trials=found.trials if found else (),
        )

    def notes(self) -> Iterator[str]:
        """What a user should know of the samples: that more of them could show the same of smaller models."""
        limit, confidence, kind = self.allowed.limit, self.allowed.confidence, self.judged_by.kind
        wanted = fewest_samples(limit, confidence, kind, lost=FLIPS_TO_SPARE)
        if len(self.judging) < wanted:
            afford = [fewest_samples(limit, confidence, kind, lost=lost) for lost in range(FLIPS_TO_SPARE)]
            spare = sum(fewest <= len(self.judging) for fewest in afford) - 1
            yield (
                f"On {len(self.judging):,} samples, {self.allowed} is shown only if at most {spare} of the answers are "
                f"lost; on {wanted:,}, {FLIPS_TO_SPARE} may be. More samples (--eval-data) allow smaller models."
            )


def judge_held_out(
    original: ModelProto,
    calibration: Calibration,
    allowed: Allowance,
    *,
    metric: str | UserMetric | None = None,
    seed: int = 0,
    threads: int = 0,
) -> Judge:
    """
    A judge who holds back part of the samples; prune with his `pruning` only.

    Args:
        original: the model before pruning.
        calibration: all samples there are.
        allowed: the drop that may be, and the confidence that it is no more.
        metric: as in `prepare_metric`.
        seed: decides which samples are held back.
        threads: of ONNX Runtime; 0 leaves the choice to it.

    Raises:
        DataError: too few samples, or made-up ones.
        UsageError: the metric does not suit the model.
    """
    refuse_synthetic(calibration)
    outputs = outputs_of(original, calibration, threads=threads)
    whole = prepare_metric(outputs, calibration.labels, metric)
    strata = strata_of(outputs, calibration.labels)
    halves = hold_out(calibration, allowed, whole.kind, strata=strata, seed=seed)
    first, second = whole.only(halves.rows), whole.only(halves.held_out)
    return Judge(allowed, halves.pruning, halves.judging, first, second, held_out=True, threads=threads)


def judge_on(
    original: ModelProto,
    pruning: Calibration,
    judging: Calibration,
    allowed: Allowance,
    *,
    metric: str | UserMetric | None = None,
    threads: int = 0,
) -> Judge:
    """
    A judge with samples of their own to judge on; arguments and errors are those of `judge_held_out`.

    Where the samples for pruning lack the labels that the metric needs, they are rehearsed on by what suits them.
    """
    refuse_synthetic(judging)
    judged_by = prepare_metric(outputs_of(original, judging, threads=threads), judging.labels, metric)
    require_enough(len(judging), allowed, judged_by.kind)
    outputs = outputs_of(original, pruning, threads=threads)
    try:
        rehearsed_by = prepare_metric(outputs, pruning.labels, metric)
    except UsageError:
        rehearsed_by = prepare_metric(outputs, pruning.labels)
    return Judge(allowed, pruning, judging, rehearsed_by, judged_by, held_out=False, threads=threads)


def refuse_synthetic(calibration: Calibration) -> None:
    """
    Check that the samples are real.

    Raises:
        DataError: they were made up.
    """
    if calibration.synthetic:
        raise DataError(
            "Expected samples to judge a pruned model on, found none: on made-up inputs a drop means nothing. "
            "Pass --data or --eval-data, or say how far to prune: --macs 50%."
        )


def strata_of(outputs: Mapping[str, np.ndarray], labels: np.ndarray | None) -> np.ndarray | None:
    """A class for each sample: its label, or else the original's answer; None where a sample has no single one."""
    answers = labelled_answers(outputs, labels)
    found = labels if answers is not None else None
    if found is None:
        evident = evident_answers(outputs)
        found = evident.of(outputs) if evident is not None else None
    return found if found is not None and found.ndim == 1 else None
