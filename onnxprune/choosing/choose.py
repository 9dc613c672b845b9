"""From scores and targets to a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from onnxprune.choosing.allocation import Allocation, cost_in_groups
from onnxprune.choosing.eligible import groups_to_prune
from onnxprune.choosing.narrowing import Narrowing
from onnxprune.choosing.orders import Order, Widths, best_scores, losses_at_widths
from onnxprune.choosing.plan import Plan, plan_of
from onnxprune.choosing.targets import Limits, Targets
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import PlanError, TargetError, UsageError
from onnxprune.probing.curves import WidthCurves
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.rules.axes import Dim

AllocationName = Literal["curves", "global", "uniform"]

MOST_ATTEMPTS = 20


def choose(
    couplings: Couplings,
    scores: Sensitivities,
    targets: Targets,
    limits: Limits | None = None,
    *,
    curves: WidthCurves | None = None,
    allocation: AllocationName | None = None,
) -> Plan:
    """
    The plan that removes as little as the targets allow.

    Inside a group the channels of the smallest scores (in absolute value) go first. First every group gets the width
    that `ratio` and `threshold` ask for; then groups get narrower until all upper bounds hold.

    Args:
        couplings: of the model.
        scores: for every group that may be pruned.
        targets: what must hold.
        limits: what every plan keeps to.
        curves: the loss of each group at its widths, channels gone in the order of these scores.
        allocation: how wide each group stays: "curves", at the least sum of losses by the curves; "global", channels
            go by loss per cost, which takes scores that are losses; "uniform", evenly. Default: the first of these
            that is known, and raw scores of different groups are never compared.

    Raises:
        TargetError: the bounds cannot be reached; the message names the least that can.
        UsageError: a glob, ratio, threshold or allocation means nothing.
        ModelError: nothing can be pruned.
    """
    return choose_between(couplings, [Order(scores, curves)], targets, limits, allocation=allocation)[0]


def choose_between(
    couplings: Couplings,
    orders: Sequence[Order],
    targets: Targets,
    limits: Limits | None = None,
    *,
    allocation: AllocationName | None = None,
) -> tuple[Plan, Sensitivities]:
    """
    The plan of `choose`, where several orders compete; and the scores that decided.

    With the curves of all orders, a group's loss at a width is that of the best order there, and that order decides
    which of its channels go. Without, the first order decides.
    """
    limits = limits or Limits()
    groups = groups_to_prune(couplings, limits)
    for order in orders:
        check_complete(order, groups)
    losses = losses_at_widths(orders, groups)
    chooser = Chooser(couplings, orders[0].scores, targets, limits, groups, allocation_of(allocation, orders), losses)
    widths = chooser.widths()
    scores = best_scores(orders, widths)
    kept = {group.name: best(scores.importance(group.name), widths[group.name]) for group in groups}
    return plan_of(couplings, kept), scores


def check_complete(order: Order, groups: Sequence[Group]) -> None:
    """Refuse an order that says nothing about a group."""
    for what, known in (("scores", order.scores), ("curves", order.curves)):
        names = {entry.name for entry in known.groups} if known is not None else {group.name for group in groups}
        missing = [group.name for group in groups if group.name not in names]
        if missing:
            raise PlanError(
                f"The {what} say nothing about group {missing[0]!r}. Measure it, or leave it out with --skip."
            )


def allocation_of(asked: AllocationName | None, orders: Sequence[Order]) -> AllocationName:
    """
    The allocation that is meant.

    Raises:
        UsageError: there is no such allocation, or it takes what is not there.
    """
    have_curves = all(order.curves is not None for order in orders)
    are_losses = orders[0].scores.are_losses
    if asked is None:
        return "curves" if have_curves else "global" if are_losses else "uniform"
    if asked not in get_args(AllocationName):
        raise UsageError(f"Expected an allocation among {', '.join(get_args(AllocationName))}, found {asked!r}.")
    if asked == "global" and not are_losses:
        raise UsageError(
            f"Expected for allocation global scores that are losses, found criterion {orders[0].scores.criterion!r}, "
            "whose scores only order the channels of a group. Take allocation curves or uniform."
        )
    if asked == "curves" and not have_curves:
        raise UsageError("Expected width curves for allocation curves, found none. Measure them, or take uniform.")
    return asked


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` highest scores, ascending; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:count])


class Chooser:
    """The widths of all groups under the targets."""

    def __init__(
        self,
        couplings: Couplings,
        scores: Sensitivities,
        targets: Targets,
        limits: Limits,
        groups: Sequence[Group],
        allocation: AllocationName,
        losses: Mapping[str, np.ndarray],
    ) -> None:
        self.couplings = couplings
        self.scores = scores
        self.targets = targets
        self.limits = limits
        self.groups = groups
        self.allocation = allocation
        self.losses = losses
        self.bounds = targets.bounds(couplings.costs)

    def widths(self) -> Widths:
        """Widths at which every target holds."""
        asked: Widths = {group.name: self._asked_width(group) for group in self.groups}
        widths = asked
        if self.allocation == "curves" and (found := self._of_least_loss(widths)) is not None:
            return found
        for with_floor in (True, False):
            narrowing = Narrowing(self.groups, widths, self._priorities(widths), self.limits, with_floor=with_floor)
            count = narrowing.steps_until(self._holds)
            if count is not None:
                found = narrowing.after(count)
                return self._widened(found, asked) if self.limits.widths else found
            widths = narrowing.after(narrowing.steps)
        raise TargetError(self._unreachable(widths))

    def _of_least_loss(self, start: Widths) -> Widths | None:
        """The widths of least loss by the curves; None where the bounds are not met so."""
        allowed = tuple(self._allowed(group, start[group.name]) for group in self.groups)
        bounds = {name: bound for name, (_, bound) in self.bounds.items()}
        for _ in range(MOST_ATTEMPTS):
            costs = tuple(cost_in_groups(cost, self.groups, bounds[name]) for name, (cost, _) in self.bounds.items())
            losses = tuple(self.losses[group.name] for group in self.groups)
            solved = Allocation(losses, allowed, costs).solved()
            if solved is None:
                return None
            widths = {group.name: int(width) for group, width in zip(self.groups, solved, strict=True)}
            if self._holds(widths):
                return widths
            dims = self.dim_widths(widths)  # a group of several Dims may keep more of the dear ones
            for name, (cost, bound) in self.bounds.items():
                bounds[name] -= max(cost.at(dims) - bound, 0.0) + 1e-9 * bound
        return None

    def _widened(self, widths: Widths, widest: Widths) -> Widths:
        """The widths with groups wider again as the bounds leave room: groups alike got narrower all at once."""
        found, before = dict(widths), dict[str, int]()
        while found != before:
            before = dict(found)
            for group in sorted(self.groups, key=lambda group: widths[group.name] / group.size):
                above = self._allowed(group, widest[group.name])
                above = above[above > found[group.name]]
                if above.size and self._holds({**found, group.name: int(above[0])}):
                    found[group.name] = int(above[0])
        return found

    def _allowed(self, group: Group, widest: int) -> np.ndarray:
        """The widths that the group may have, up to the widest."""
        least = min(self.limits.least(group, with_floor=False), widest)
        allowed = self.limits.allowed(group)
        return np.unique(np.append(allowed[(allowed >= least) & (allowed <= widest)], widest))

    def _asked_width(self, group: Group) -> int:
        """The width by `ratio` and `threshold`."""
        width = group.size
        if self.targets.ratio is not None:
            left = int((1 - self.targets.ratio) * group.size + 1e-9)
            width = max(self.limits.fitting(group, left), self.limits.least(group, with_floor=False))
        if self.targets.threshold is not None:
            above = int((self.scores.importance(group.name) >= self._threshold()).sum())
            width = min(width, max(self.limits.rounded(group, above), self.limits.least(group, with_floor=False)))
        return width

    def _threshold(self) -> float:
        """θ: a number, or the median or mean of the scores of all groups."""
        asked = self.targets.threshold
        every = np.concatenate([self.scores.importance(group.name) for group in self.groups])
        if asked == "median":
            return float(np.median(every))
        if asked == "mean":
            return float(np.mean(every))
        assert asked is not None
        return float(asked)

    def dim_widths(self, widths: Widths) -> dict[Dim, int]:
        """Group widths as widths of Dims; of a group of unit positions, the lowest scores close first."""
        found: dict[Dim, int] = {}
        for group in self.groups:
            if len(group.dims) == 1:
                found[group.dims[0]] = widths[group.name]
            else:
                kept = best(self.scores.importance(group.name), widths[group.name])
                found.update({dim: len(stay) for dim, stay in group.per_dim(kept).items()})
        return found

    def _holds(self, widths: Widths) -> bool:
        dims = self.dim_widths(widths)
        return all(cost.at(dims) <= bound for cost, bound in self.bounds.values())

    def shares(self) -> dict[str, float]:
        """For each group, the share of the bounded costs that one of its channels carries at full width."""
        found = {}
        for group in self.groups:
            narrower = {dim: dim.size - dim.size / group.size for dim in group.dims}
            saved = 0.0
            for cost, _ in self.bounds.values():
                touched = cost.touching(frozenset(group.dims)).smooth
                saved += (touched.at({}) - touched.at(narrower)) / max(cost.at({}), 1e-9)  # type: ignore[arg-type]
            found[group.name] = saved
        return found

    def _priorities(self, start: Widths) -> dict[str, np.ndarray]:
        """
        For each group, of its channels that stay at `start`, least important first, when they go: low ones first.

        By loss per cost where scores are losses, else evenly through the groups, each at its pace.
        """
        if self.allocation == "uniform":
            paces = self.limits.paces
            return {
                name: np.append(-np.log(1 - np.arange(1, width) / width) / paces.get(name, 1.0), np.inf)
                for name, width in start.items()
            }
        shares = self.shares()
        return {
            name: np.sort(self.scores.importance(name))[-width:] / max(shares[name], 1e-12)
            for name, width in start.items()
        }

    def _unreachable(self, least: Widths) -> str:
        dims = self.dim_widths(least)
        lines = []
        for name, (cost, bound) in self.bounds.items():
            whole, lowest = cost.at({}), cost.at(dims)
            if lowest > bound:
                lines.append(
                    f"{name} of at most {told(name, bound)} ({bound / whole:.1%}), "
                    f"the least reachable is {told(name, lowest)} ({lowest / whole:.1%})"
                )
        step = "auto" if self.limits.widths else self.limits.multiple_of
        limits = f"min-channels {self.limits.min_channels}, multiple-of {step}"
        return f"Expected {'; '.join(lines)}, within {limits}. Ask for less, or relax the limits, --only or --skip."


def told(name: str, cost: float) -> str:
    """A cost as people read it."""
    return f"{cost:.3g} ms" if name == "latency" else f"{cost:,.0f}"
