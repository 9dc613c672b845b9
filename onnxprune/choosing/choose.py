"""From scores and targets to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.choosing.plan import Plan, plan_of
from onnxprune.choosing.targets import Limits, Targets
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import ModelError, PlanError, TargetError
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.rules.axes import Dim

Widths = Mapping[str, int]
"""Channels that stay, by group name."""


def choose(couplings: Couplings, scores: Sensitivities, targets: Targets, limits: Limits | None = None) -> Plan:
    """
    The plan that removes as little as the targets allow.

    Inside a group the channels of the smallest scores (in absolute value) go first. First every group gets the width
    that `ratio` and `threshold` ask for; then channels go one after another until all upper bounds hold. Which group is
    next is decided by loss per cost when the scores are losses, and evenly otherwise: raw scores of different groups
    are never compared.

    Raises:
        TargetError: the bounds cannot be reached; the message names the least that can.
        UsageError: a glob, ratio or threshold means nothing.
        ModelError: nothing can be pruned.
    """
    limits = limits or Limits()
    groups = groups_to_prune(couplings, limits)
    missing = [group.name for group in groups if not any(entry.name == group.name for entry in scores.groups)]
    if missing:
        raise PlanError(f"The scores say nothing about group {missing[0]!r}. Measure it, or leave it out with --skip.")
    chooser = Chooser(couplings, scores, targets, limits, groups)
    widths = chooser.widths()
    kept = {group.name: best(scores.importance(group.name), widths[group.name]) for group in groups}
    return plan_of(couplings, kept)


def groups_to_prune(couplings: Couplings, limits: Limits) -> tuple[Group, ...]:
    """
    The groups that the limits leave.

    Raises:
        ModelError: there are none; the message says why.
        UsageError: a glob matches nothing.
    """
    groups = limits.groups(couplings)
    if not groups:
        raise ModelError(nothing_to_prune(couplings, limits))
    return groups


def nothing_to_prune(couplings: Couplings, limits: Limits) -> str:
    """Why there is no group, in the user's words."""
    if any(group.exact for group in couplings.groups):
        left = ", ".join(repr(group.name) for group in couplings.groups[:6])
        return f"Expected a group to prune, found none: --only and --skip leave none of {left}. Leave more."
    reasons = [f"{group.name!r}: {group.inexact.text}" for group in couplings.groups if group.inexact is not None]
    reasons += [f"{refusal.slices[0].tensor!r}: {refusal.reason.text}" for refusal in couplings.refusals]
    if not couplings.groups and not couplings.refusals:
        reasons.append("no operator that multiplies by weights was found")
    reasons = list(dict.fromkeys(reasons)) or ["no layer reads weights"]
    listed = "".join(f"\n  - {reason}" for reason in reasons[:8])
    more = f"\n  - and {len(reasons) - 8} more" if len(reasons) > 8 else ""
    return f"Expected a group of channels to prune, found none:{listed}{more}\nSee `onnxprune inspect`."


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
    ) -> None:
        self.couplings = couplings
        self.scores = scores
        self.targets = targets
        self.limits = limits
        self.groups = groups
        self.bounds = targets.bounds(couplings.costs)

    def widths(self) -> Widths:
        """Widths at which every target holds."""
        widths: Widths = {group.name: self._asked_width(group) for group in self.groups}
        for with_floor in (True, False):
            narrowing = Narrowing(self, widths, with_floor=with_floor)
            count = narrowing.steps_until(self._holds)
            if count is not None:
                return narrowing.after(count)
            widths = narrowing.after(narrowing.steps)
        raise TargetError(self._unreachable(widths))

    def _asked_width(self, group: Group) -> int:
        """The width by `ratio` and `threshold`."""
        width = group.size
        if self.targets.ratio is not None:
            left = int((1 - self.targets.ratio) * group.size + 1e-9)
            aligned = left // self.limits.multiple_of * self.limits.multiple_of
            width = max(aligned, self.limits.least(group, with_floor=False))
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
                touched = cost.touching(frozenset(group.dims))
                saved += (touched.at({}) - touched.at(narrower)) / max(cost.at({}), 1)  # type: ignore[arg-type]
            found[group.name] = saved
        return found

    def _unreachable(self, least: Widths) -> str:
        dims = self.dim_widths(least)
        lines = []
        for name, (cost, bound) in self.bounds.items():
            whole, lowest = cost.at({}), cost.at(dims)
            if lowest > bound:
                lines.append(
                    f"{name} of at most {bound:,.0f} ({bound / whole:.1%}), "
                    f"the least reachable is {lowest:,.0f} ({lowest / whole:.1%})"
                )
        limits = f"min-channels {self.limits.min_channels}, multiple-of {self.limits.multiple_of}"
        return f"Expected {'; '.join(lines)}, within {limits}. Ask for less, or relax the limits, --only or --skip."


class Narrowing:
    """All groups getting narrower channel by channel, in the order in which channels are missed least."""

    def __init__(self, chooser: Chooser, start: Widths, *, with_floor: bool) -> None:
        self.start = start
        self.chooser = chooser
        self.least = {
            group.name: min(start[group.name], chooser.limits.least(group, with_floor=with_floor))
            for group in chooser.groups
        }
        shares = chooser.shares()
        entries = []
        for group in chooser.groups:
            width = start[group.name]
            ordered = np.sort(chooser.scores.importance(group.name))[group.size - width :]
            for rank, score in enumerate(ordered):
                entries.append((self._priority(rank, float(score), width, shares[group.name]), rank, group.name))
        entries.sort(key=lambda entry: entry[0])
        self.order = [name for _, _, name in entries]
        self.steps = len(self.order)

    def _priority(self, rank: int, score: float, width: int, share: float) -> float:
        """Low goes first: loss per cost where scores are losses, else evenly through the group."""
        if self.chooser.scores.criterion not in ("sensitivity", "obs"):
            return (rank + 1) / width
        return score / max(share, 1e-12)

    def steps_until(self, holds: Callable[[Widths], bool]) -> int | None:
        """The fewest steps after which `holds`; None if it never does."""
        return first_that(lambda steps: holds(self.after(steps)), self.steps)

    def after(self, steps: int) -> Widths:
        """The widths when the first `steps` channels have gone, within the limits."""
        gone: dict[str, int] = dict.fromkeys(self.start, 0)
        for name in self.order[:steps]:
            gone[name] += 1
        limits = self.chooser.limits
        return {
            group.name: max(
                min(self.start[group.name], limits.rounded(group, self.start[group.name] - gone[group.name])),
                self.least[group.name],
            )
            for group in self.chooser.groups
        }


def first_that(holds: Callable[[int], bool], highest: int) -> int | None:
    """The smallest number up to `highest` for which a monotone condition holds; None if there is none."""
    if not holds(highest):
        return None
    low, high = 0, highest
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
