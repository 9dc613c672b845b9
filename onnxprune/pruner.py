"""
Pruning one model to any number of targets: what is measured on the original serves all of them.

    score channels ──► measure width curves ──► choose ──► rewrite ──► refit
           └────────────────── again on what came of it, in rounds ──────┘
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnx import ModelProto

from onnxprune.choosing.choose import AllocationName, allocation_of
from onnxprune.choosing.eligible import groups_to_prune
from onnxprune.choosing.orders import Order
from onnxprune.choosing.plan import Plan, plan_of_both, same_groups
from onnxprune.choosing.targets import Amount, Limits, Targets
from onnxprune.clock import Clock
from onnxprune.coupling.couple import Couplings, Group, couple
from onnxprune.ordering.criteria import CRITERIA
from onnxprune.ordering.evidence import Evidence
from onnxprune.planning import absolute, dims_left, planned
from onnxprune.probing.asking import Effort
from onnxprune.probing.curves import SHARES, WidthCurves, curves_of
from onnxprune.probing.losses import LossName, UserLoss, prepare_loss
from onnxprune.probing.probe import loss_of
from onnxprune.probing.sensitivities import Criterion, Sensitivities
from onnxprune.reading.read import read
from onnxprune.repairing.repair import repair
from onnxprune.repairing.standing_in import StandIns
from onnxprune.repairing.steps import Repaired
from onnxprune.reporting.measuring import Session
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.timing.aiming import in_time
from onnxprune.timing.pacing import Pacing
from onnxprune.timing.whole import latency

AGGRESSIVE = 0.4
"""Bounds below this share of the original take several rounds, if nothing is said."""

ROUNDS = 3

AIMING_SECONDS = 2.0
"""For each plan that is measured on the way to a bound on the latency."""

CURVE_SAMPLES = 4
"""So many times the samples for a point of a curve as for a channel's score: it decides more."""


@dataclass(frozen=True)
class Recipe:
    """
    How a model is pruned, whatever the target; the words are those of `prune`.

    `pacing` tells how fast groups get narrower beside each other where nothing else does.
    """

    limits: Limits
    criterion: Criterion = "auto"
    loss: LossName | UserLoss = "distance"
    delta: float = 1.0
    order: int = 1
    effort: Effort = field(default_factory=Effort)
    allocation: AllocationName | None = None
    rounds: int | None = None
    compensate: bool = True
    seed: int = 0
    pacing: Pacing | None = None


@dataclass(frozen=True)
class Pruned:
    """A model that was pruned, the scores that decided, and what became of its layers."""

    plan: Plan
    model: ModelProto
    scores: Sensitivities | None
    refitted: tuple[Repaired, ...] = ()


class Pruner:
    """
    Prunes the model of a session.

    `scores` are those measured before, if there are any: then no criterion is asked. `notes` are for the user.
    """

    def __init__(self, session: Session, recipe: Recipe, clock: Clock, scores: Sensitivities | None = None) -> None:
        self.session = session
        self.recipe = recipe
        self.notes: list[str] = []
        self._clock = clock
        self._given = scores

    @property
    def couplings(self) -> Couplings:
        """Of the original."""
        return self.session.couplings

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """The orders in which the original's channels may go."""
        return self._orders_of(self.couplings, self.recipe.limits, self._given)

    def to(self, targets: Targets) -> Pruned:
        """
        The model pruned to these targets.

        Raises:
            TargetError: they cannot be reached.
        """
        first, *steps = self._steps(targets)
        if not steps:
            return self._refitted(*self._in_one_round(first, is_last=True))
        # first, for it refuses what cannot be reached before more work
        directly = self._refitted(*self._in_one_round(steps[-1], is_last=True))
        in_rounds = self._in_rounds(first, steps)
        if in_rounds is None or self.session.judged_by is None:  # no loss says which is better
            return in_rounds or directly
        return min(in_rounds, directly, key=self._loss)

    def _milliseconds(self, model: ModelProto) -> float:
        """The latency of a model pruned from the session's, measured in turn with it."""
        session, cost = self.session, self.couplings.costs.latency
        with self._clock.stage("measure latency"):
            found = latency(
                (self.couplings.graph.model, model), session.calibration, session.setting, seconds=AIMING_SECONDS
            )
        assert found is not None
        assert cost is not None
        return found.ratio * cost.at({})

    def _in_rounds(self, first: Targets, steps: Sequence[Targets]) -> Pruned | None:
        """The model pruned to one target after another; None if a smaller model's groups are others."""
        plan, model, scores = self._in_one_round(first, is_last=False)
        for number, step in enumerate(steps, 1):
            is_last = number == len(steps)
            further = self._narrowed(self._refitted(plan, model, scores), step, is_last=is_last)
            if further is None:
                return None
            plan, scores = further
            model = rewrite_kept(self.couplings, plan.kept(self.couplings))
        return self._refitted(plan, model, scores)

    def _loss(self, pruned: Pruned) -> float:
        """The distance of a model's outputs from the original's, on the samples that it was pruned with."""
        session = self.session
        loss = prepare_loss(self.couplings.graph, session.calibration, "distance", reference=session.outputs)
        return loss_of(self.couplings, session.calibration, loss, model=pruned.model, threads=session.threads)

    def _in_one_round(self, targets: Targets, *, is_last: bool) -> tuple[Plan, ModelProto, Sensitivities]:
        """The plan for these targets by what is known of the original, with its model and the scores that decided."""
        limits, pacing = self.recipe.limits, self.recipe.pacing
        if pacing is not None and allocation_of(self.recipe.allocation, self.orders) == "uniform":
            limits = replace(limits, paces=pacing.paces(targets))
        plan, scores, model = self._planned(self.couplings, self.orders, targets, limits, is_last=is_last)
        return plan, model, scores

    def _planned(
        self, couplings: Couplings, orders: tuple[Order, ...], targets: Targets, limits: Limits, *, is_last: bool
    ) -> tuple[Plan, Sensitivities, ModelProto]:
        """The plan for these targets, the scores that decided and its model; the last round's latency is measured."""
        allocation = self.recipe.allocation

        def within(milliseconds: float | None) -> tuple[Plan, Sensitivities, ModelProto]:
            asked = targets if milliseconds is None else replace(targets, latency=Amount(milliseconds, is_share=False))
            with self._clock.stage("choose and rewrite"):
                return planned(couplings, orders, asked, limits, allocation)

        bounds = targets.bounds(couplings.costs)
        if not is_last or "latency" not in bounds:
            return within(None)
        return in_time(
            within,
            lambda found: self._milliseconds(found[2]),
            bounds["latency"][1],
            lambda one, other: one[0].groups == other[0].groups,
        ).planned

    def _narrowed(self, pruned: Pruned, targets: Targets, *, is_last: bool) -> tuple[Plan, Sensitivities] | None:
        """The plan of the original that narrows a pruned model to further targets; None if its groups are others."""
        couplings = couple(read(pruned.model, input_shapes=self.couplings.graph.input_shapes))
        names = same_groups(pruned.plan, couplings)
        if names is None:
            return None
        allowed = {group.name for group in groups_to_prune(self.couplings, self.recipe.limits)}
        only = tuple(glob.escape(name) for name, original in names.items() if original in allowed)
        limits = replace(self.recipe.limits, only=only, skip=(), widths=self._widths_left(couplings, names))
        if self.couplings.costs.latency is not None:
            again = dims_left(self.couplings, pruned.plan.kept(self.couplings), couplings, names)
            if again is None:
                return None
            timed = self.couplings.costs.latency.instead(again)
            couplings = replace(couplings, costs=replace(couplings.costs, latency=timed))
        orders = self._orders_of(couplings, limits)
        plan, scores, _ = self._planned(couplings, orders, targets, limits, is_last=is_last)
        return plan_of_both(self.couplings, pruned.plan, plan, names), scores

    def _widths_left(self, couplings: Couplings, names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        """The widths that the groups of a pruned model may still have; `names` are their names in the original."""
        known = self.recipe.limits.widths
        return {
            group.name: (*(width for width in known[names[group.name]] if width < group.size), group.size)
            for group in couplings.groups
            if names.get(group.name) in known
        }

    def refitted(self, plan: Plan) -> Pruned:
        """The model pruned by a plan of the original."""
        with self._clock.stage("choose and rewrite"):
            model = rewrite_kept(self.couplings, plan.kept(self.couplings))
        return self._refitted(plan, model, None)

    def _refitted(self, plan: Plan, model: ModelProto, scores: Sensitivities | None) -> Pruned:
        """The pruned model with its layers refitted, if that is wanted."""
        if not (self.recipe.compensate and plan.removed):
            return Pruned(plan, model, scores)
        with self._clock.stage("refit layers"):
            repaired = repair(
                self.couplings,
                plan,
                model,
                self.session.calibration,
                threads=self.session.threads,
                progress=self._clock.progress,
            )
        return Pruned(replace(plan, refitted=repaired.constants), repaired.model, scores, repaired.layers)

    def _steps(self, targets: Targets) -> Iterator[Targets]:
        """The targets of each round, the last one's those that are wanted; each round removes the same share."""
        whole = {name: cost.at({}) for name, (cost, _) in targets.bounds(self.couplings.costs).items()}
        wanted = {name: bound for name, (_, bound) in targets.bounds(self.couplings.costs).items()}
        least = min((wanted[name] / whole[name] for name in wanted), default=1.0)
        rounds = self.recipe.rounds or (ROUNDS if least < AGGRESSIVE and self.measures_curves else 1)
        if self._given is not None or targets.ratio is not None or targets.threshold is not None or not wanted:
            rounds = 1
        for number in range(1, rounds):
            reached = {name: whole[name] * (wanted[name] / whole[name]) ** (number / rounds) for name in wanted}
            yield absolute(Targets(), reached)
        yield absolute(targets, wanted)

    def _orders_of(self, couplings: Couplings, limits: Limits, given: Sensitivities | None = None) -> tuple[Order, ...]:
        """The orders that compete on a model, each with its width curves where the allocation takes them."""
        evidence = self._evidence(couplings)
        groups = groups_to_prune(couplings, limits)
        orders = []
        for name in self._competing(evidence, groups) if given is None else [given.criterion]:
            scores = given
            if scores is None:
                with self._clock.stage("score channels"):
                    ranking = CRITERIA[name](evidence, groups)
                scores = ranking.scores
                self.notes.extend(ranking.notes)
            orders.append(Order(scores, self._curves(evidence, groups, scores)))
        return tuple(orders)

    def _competing(self, evidence: Evidence, groups: tuple[Group, ...]) -> tuple[Criterion, ...]:
        """The criteria that are asked."""
        if self.recipe.criterion != "auto":
            return (self.recipe.criterion,)
        if not any(evidence.readings.readers(group) for group in groups):
            return ("sensitivity",)
        return ("obs", "sensitivity") if self.measures_curves else ("obs",)

    def _curves(self, evidence: Evidence, groups: tuple[Group, ...], scores: Sensitivities) -> WidthCurves | None:
        """The width curves in the order of these scores, after repair if layers are to be refitted."""
        if not self.measures_curves:
            return None
        with self._clock.stage("measure width curves"):
            inquiry = evidence.inquiry(max(1, len(SHARES) * len(groups) // CURVE_SAMPLES))
            stand_in = StandIns(evidence.readings) if self.recipe.compensate else None
            return curves_of(inquiry, groups, scores, repair=stand_in)[0]

    @property
    def measures_curves(self) -> bool:
        """Are groups allocated by width curves?"""
        return self.recipe.allocation == "curves" and self.session.judged_by is not None

    def _evidence(self, couplings: Couplings) -> Evidence:
        recipe, session = self.recipe, self.session
        return Evidence(
            couplings=couplings,
            calibration=session.calibration,
            outputs=session.outputs,
            loss=recipe.loss,
            delta=recipe.delta,
            order=recipe.order,
            effort=recipe.effort,
            seed=recipe.seed,
            progress=self._clock.progress,
        )
