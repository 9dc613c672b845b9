"""One run on one model: what is read and measured once, and the models that are made of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from onnx import ModelProto

from onnxprune.choosing.plan import Plan, plan_of
from onnxprune.choosing.targets import Bound, Targets, amount
from onnxprune.clock import Clock
from onnxprune.coupling.couple import Couplings
from onnxprune.errors import TargetError
from onnxprune.files import check_target
from onnxprune.finishing import Further, Made, finished, made, shared_budget
from onnxprune.judging.judgement import Judge, Judgement
from onnxprune.judging.searching import smallest
from onnxprune.options import Options
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.pruner import Pruned, Pruner
from onnxprune.reading.numbers import fits_whole, whole
from onnxprune.reporting.measuring import Session
from onnxprune.reporting.report import Report, Settings
from onnxprune.rewriting.saving import save_model


@dataclass(frozen=True)
class PruneResult:
    """
    A pruned model that passed its own check.

    `model` is the ModelProto, `plan` says which channels stay, `report` holds all figures, `scores` the channel scores
    that decided (None when a plan was applied). Of an original above 2 GB, `model` refers to numbers outside it that
    only this process knows: `save` is its way to a file.
    """

    model: ModelProto
    plan: Plan
    report: Report
    scores: Sensitivities | None
    couplings: Couplings = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the model, with data files beside it if the original has them; all appear whole or not at all.

        Raises:
            UsageError: the path is the input's own, or its folder cannot be written.
        """
        check_target(path, source=self.couplings.graph.path)
        save_model(self.model, path, source=self.couplings.graph)


@dataclass(frozen=True)
class Job:
    """
    A model that was read, and run on its samples; pruned as the options say.

    `judge` is there where models are judged, and `searches` says that the drop alone decides how far to prune.
    """

    options: Options
    pruner: Pruner
    clock: Clock
    judge: Judge | None
    searches: bool
    notes: tuple[str, ...]

    @property
    def session(self) -> Session:
        """The model and what it is measured on."""
        return self.pruner.session

    @property
    def wanted(self) -> float | None:
        """The bound on the latency, as a share of the original's."""
        costs = self.session.couplings.costs
        if costs.latency is None or self.options.latency is None:
            return None
        return amount(self.options.latency, "latency").of(costs.latency.at({})) / costs.latency.at({})

    def result(self) -> PruneResult:
        """
        The pruned model, checked and measured.

        Raises:
            OnnxPruneError: a target cannot be reached, too much may be lost, or the model fails its check.
        """
        found, judgement = self._within_drop() if self.searches else self._to_targets()
        notes = tuple(dict.fromkeys((*self.notes, *self.pruner.notes)))
        report = finished(self.session, found, self._settings(found.pruned), notes, self.clock, judgement, self.wanted)
        couplings = self.session.couplings
        model = whole(found.model) if fits_whole(couplings.graph.model) else found.model
        return PruneResult(model, found.plan, report, found.pruned.scores, couplings)

    def _within_drop(self) -> tuple[Made, Judgement]:
        """The smallest model that loses no more than is allowed."""
        judge = self.judge
        assert judge is not None
        found = smallest(
            lambda share: self._made(Targets(macs=share)),
            lambda made: judge.rehearse(made.model),
            lambda made: judge.drop(made.model),
            judge.allowed,
            progress=self.clock.progress,
        )
        return found.item, judge.judgement(found.item.model, found)

    def _to_targets(self) -> tuple[Made, Judgement | None]:
        """The model that reaches the targets; judged where that is wanted."""
        found = self._made(self.options.targets)
        if self.judge is None:
            return found, None
        judgement = self.judge.judgement(found.model)
        if self.options.max_drop is not None and not judgement.within_limit:
            drop = judgement.drop
            raise TargetError(
                f"Expected {self.judge.allowed} in {judgement.metric}, found a drop of {drop.mean:.4g} on "
                f"{drop.samples:,} samples, which may be up to {drop.upper:.4g}. Prune less, allow more with "
                "--max-drop, or judge on more samples with --eval-data."
            )
        return found, judgement

    def _made(self, targets: Targets) -> Made:
        """The model of these targets, with weights and bits as asked."""
        options, couplings = self.options, self.session.couplings
        weights = options.removed_weights
        for_channels, numbers_left = shared_budget(targets, weights, couplings)
        whole = Pruned(plan_of(couplings, {}), couplings.graph.model, None)
        pruned = self.pruner.to(for_channels) if targets.any else whole
        further = Further(
            weights,
            "magnitude" if options.criterion == "magnitude" else "obs",
            options.sparse,
            options.quantize is not None,
            numbers_left,
        )
        return made(pruned, further, self.session, self.clock)

    def _settings(self, pruned: Pruned) -> Settings:
        """What the report says of how the model was pruned."""
        options, recipe, scores = self.options, self.pruner.recipe, pruned.scores
        found: dict[str, str | bool | float | int | None] = {
            "macs": spelled(options.macs),
            "params": spelled(options.params),
            "size": spelled(options.size),
            "latency": spelled(options.latency),
            "ratio": options.ratio,
            "threshold": options.threshold,
            "max drop": self.judge.allowed.limit if self.judge else None,
            "confidence": self.judge.allowed.confidence if self.judge else None,
            "allocation": recipe.allocation,
            "rounds": recipe.rounds,
            "compensate": recipe.compensate,
            "weights": None if options.weights is None else str(options.weights),
            "quantize": options.quantize,
            "inexact": options.inexact,
            "multiple of": options.multiple_of,
            "setting": options.setting.words,
            "seed": options.seed,
        }
        if scores is not None:
            found |= {
                "criterion": scores.criterion,
                "loss": scores.loss or None,
                "delta": scores.delta,
                "order": scores.order,
                "probe samples": scores.samples,
            }
        return found


def spelled(bound: Bound) -> str | float | int | None:
    """A bound as the user gave it."""
    return None if bound is None else bound if isinstance(bound, str | float | int) else str(bound)
