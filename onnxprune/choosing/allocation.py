"""
How wide each group stays: the widths of least loss whose costs keep to their bounds.

The loss of a group at a width is read off its curve, and losses of groups add up. Costs do not: a layer between two
groups costs the product of both widths, and milliseconds go down in stairs. So first groups get narrower step by step,
always the one that loses least for what it saves at the widths of the moment; then pairs of groups trade, one wider and
another narrower, as long as the sum of losses falls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial.polynomial import polyval

from onnxprune.coupling.costs import Price, Stair, Staircase, in_steps
from onnxprune.coupling.couple import Group
from onnxprune.rules.axes import Axis, Dim, Product, Sum

SMALLEST_GAIN = 1e-9
"""A trade must lower the sum of losses by more than this share of it."""

MOST_TRADES = 2000

MOST_OFFERED = 48
"""Widths of a group that narrowing steps through; trades and the end have all of them."""

ROUNDING = 1e-12
"""Of a cost, as a share of its bound: far less than one multiplication or number of any model."""


Along = Callable[[int, np.ndarray], np.ndarray]
"""A cost while one group, by its number, has each of these widths and the others stay as they are."""


@dataclass(frozen=True)
class Cost:
    """
    A cost in the widths of groups: a sum of monomials, and its upper bound.

    `factors` `[monomials]` are the numbers in front, `powers` `[monomials, groups]` how often each width is in each,
    `steps` `[monomials, groups]` the whole steps that it counts there, where it has some.
    """

    factors: np.ndarray
    powers: np.ndarray
    bound: float
    steps: np.ndarray | None = None

    @cached_property
    def _has_power(self) -> np.ndarray:
        """Does a group stand in a monomial with this power? `[powers, monomials, groups]`, 0 or 1."""
        return np.stack([self.powers == power for power in range(int(self.powers.max(initial=0)) + 1)]).astype(float)

    @cached_property
    def _with_group(self) -> list[np.ndarray]:
        """For each group the numbers of the monomials that it stands in."""
        return [np.flatnonzero(column) for column in self.powers.T]

    def terms(self, widths: np.ndarray) -> np.ndarray:
        """Each monomial's value `[monomials]` at the groups' widths."""
        counted = widths if self.steps is None else in_steps(widths, self.steps)
        return np.asarray(self.factors * np.exp((self.powers * np.log(counted)).sum(1)))

    def at(self, widths: np.ndarray) -> float:
        """The cost."""
        return float(self.terms(widths).sum())

    def along(self, widths: np.ndarray) -> Along:
        """The cost along each single width while the others stay."""
        terms, steps = self.terms(widths), self.steps
        if steps is None:  # a polynomial in the width, counted in units of what it is now
            along = terms @ self._has_power
            return lambda group, tried: np.asarray(polyval(tried / widths[group], along[:, group]))
        total = terms.sum()

        def stepped(group: int, tried: np.ndarray) -> np.ndarray:
            rows = self._with_group[group]
            each = steps[rows, group]
            ratios = in_steps(tried[:, None], each) / in_steps(widths[[group]], each)
            return np.asarray(total + (ratios ** self.powers[rows, group] - 1) @ terms[rows])

        return stepped


def cost_in_groups(price: Price, groups: Sequence[Group], bound: float) -> Cost:
    """The cost in the groups' widths; where a group has several Dims, each has its share of the group's width."""
    place = {dim: number for number, group in enumerate(groups) for dim in group.dims}
    share = {dim: dim.size / group.size for group in groups for dim in group.dims}
    stairs = price.parts if isinstance(price, Staircase) else (Stair(price, {}),)
    monomials: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {((), ()): price.constant}
    for stair in stairs:
        step_of = {place[dim]: step for dim, step in stair.steps.items() if dim in place}
        constant = stair.polynomial.constant if isinstance(price, Staircase) else 0.0
        monomials[(), ()] += constant
        for term in stair.polynomial.terms:
            for numbers, factor in expanded(term.axes, place, share).items():
                key = numbers, tuple(step_of.get(number, 1) for number in numbers)
                monomials[key] = monomials.get(key, 0.0) + term.factor * factor
    powers = np.zeros((len(monomials), len(groups)), np.int64)
    steps = np.ones((len(monomials), len(groups)))
    for row, (numbers, each) in enumerate(monomials):
        np.add.at(powers[row], list(numbers), 1)
        steps[row, list(numbers)] = each
    return Cost(np.array(list(monomials.values())), powers, bound, steps if (steps > 1).any() else None)


def expanded(
    axes: Sequence[Axis], place: Mapping[Dim, int], share: Mapping[Dim, float]
) -> Mapping[tuple[int, ...], float]:
    """The product of the axes' widths, multiplied out: factors by the numbers of the groups they stand with."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for axis in axes:
        both = itertools.product(found.items(), summands(axis, place, share).items())
        found = {}
        for (one, factor), (other, further) in both:
            numbers = tuple(sorted((*one, *other)))
            found[numbers] = found.get(numbers, 0.0) + factor * further
    return found


def summands(axis: Axis, place: Mapping[Dim, int], share: Mapping[Dim, float]) -> Mapping[tuple[int, ...], float]:
    """The axis' width likewise."""
    match axis:
        case Dim():
            return {(place[axis],): share[axis]} if axis in place else {(): float(axis.size)}
        case Product(factors):
            return expanded(factors, place, share)
        case Sum(parts):
            found: dict[tuple[int, ...], float] = {}
            for part in parts:
                for numbers, factor in summands(part, place, share).items():
                    found[numbers] = found.get(numbers, 0.0) + factor
            return found


@dataclass(frozen=True)
class Allocation:
    """
    The task: losses and costs of the groups' widths.

    `losses[g][w]` is the loss of group g at width w, from 0 to its size, falling with w; `allowed[g]` are the widths it
    may have, ascending.
    """

    losses: tuple[np.ndarray, ...]
    allowed: tuple[np.ndarray, ...]
    costs: tuple[Cost, ...]

    def solved(self) -> np.ndarray | None:
        """The widths `[groups]`; None where the bounds cannot be reached."""
        widths = self._narrowed(np.array([allowed[-1] for allowed in self.allowed]))
        if widths is None:
            return None
        for _ in range(MOST_TRADES):
            better = self._traded(widths)
            if better is None:
                break
            widths = better
        return self._filled(widths)

    def loss(self, widths: np.ndarray) -> float:
        """The sum of the groups' losses."""
        return float(sum(losses[width] for losses, width in zip(self.losses, widths, strict=True)))

    def _narrowed(self, widths: np.ndarray) -> np.ndarray | None:
        """Step by step the group that loses least for what it saves, until the bounds hold; in steps of some size."""
        offered = [thinned(allowed) for allowed in self.allowed]
        while (excess := self._excess(widths)) > 0:
            along = [cost.along(widths) for cost in self.costs]
            best, found = np.inf, None
            for group, width in enumerate(widths):
                narrower = offered[group][offered[group] < width]
                left = over(self.costs, [one(group, narrower) for one in along])
                rates = self._rates(group, width, narrower, excess - left)
                if rates.size and rates.min() < best:
                    best, found = rates.min(), (group, int(narrower[rates.argmin()]))
            if found is None:
                return None
            widths = replaced(widths, *found)
        return widths

    def _rates(self, group: int, width: int, narrower: np.ndarray, saved: np.ndarray) -> np.ndarray:
        """Loss for each unit of excess that goes with each narrower width; infinity where none goes."""
        lost = self.losses[group][narrower] - self.losses[group][width]
        saves = np.broadcast_to(saved > SMALLEST_GAIN, lost.shape)
        return np.asarray(np.divide(lost, saved, out=np.full(lost.shape, np.inf), where=saves))

    def _excess(self, widths: np.ndarray) -> float:
        return float(over(self.costs, [cost.at(widths) for cost in self.costs]))

    def _traded(self, widths: np.ndarray) -> np.ndarray | None:
        """The best of all trades of two groups, or of one that gets wider alone; None if none lowers the loss."""
        best, found = self.loss(widths) * (1 - SMALLEST_GAIN), None
        for group in range(len(widths)):
            for width in self._wider(group, widths[group]):
                wide = replaced(widths, group, width)
                for other, narrow in self._fitting(wide, group):
                    offer = replaced(wide, other, narrow)
                    loss = self.loss(offer)
                    if loss < best:
                        best, found = loss, offer
        return found

    def _wider(self, group: int, width: int) -> np.ndarray:
        """A few wider widths of the group."""
        above = self.allowed[group][self.allowed[group] > width]
        return above[np.unique(np.geomspace(1, len(above), 4).round().astype(int)) - 1] if len(above) else above

    def _filled(self, widths: np.ndarray) -> np.ndarray:
        """Each group as wide as the bounds leave room for: where its curve is flat, that costs nothing."""
        for group in range(len(widths)):
            above = self.allowed[group][self.allowed[group] > widths[group]]
            costs = [cost.along(widths)(group, above) for cost in self.costs]
            holds = np.broadcast_to(over(self.costs, costs) <= 0, above.shape)
            if holds.any():
                widths = replaced(widths, group, int(above[holds][-1]))
        return widths

    def _fitting(self, widths: np.ndarray, kept: int) -> list[tuple[int, int]]:
        """For each other group, the largest width, up to its own, with which all costs hold, where there is one."""
        if self._excess(widths) <= 0:
            return [(kept, int(widths[kept]))]
        found = []
        along = [cost.along(widths) for cost in self.costs]
        for other in range(len(widths)):
            if other == kept:
                continue
            allowed = self.allowed[other][self.allowed[other] < widths[other]]
            costs = [one(other, allowed) for one in along]
            holds = np.broadcast_to(over(self.costs, costs) <= 0, allowed.shape)
            if holds.any():
                found.append((other, int(allowed[holds][-1])))
        return found


def over(costs: Sequence[Cost], found: Sequence[np.ndarray | float]) -> np.ndarray:
    """By how much costs are above their bounds, in units of these, added up; 0 where all hold, but for rounding."""
    excess = [
        np.maximum(np.asarray(one) / cost.bound - 1 - ROUNDING, 0) for cost, one in zip(costs, found, strict=True)
    ]
    return np.asarray(sum(excess, start=np.zeros(())))


def thinned(widths: np.ndarray) -> np.ndarray:
    """At most so many of the widths, the first and the last among them."""
    places = np.linspace(0, len(widths) - 1, min(len(widths), MOST_OFFERED)).round().astype(int)
    return np.asarray(widths[np.unique(places)])


def replaced(widths: np.ndarray, group: int, width: int) -> np.ndarray:
    """The widths with another one for a group."""
    found = widths.copy()
    found[group] = width
    return found
