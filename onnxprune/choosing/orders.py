"""Orders in which channels go, and what each loses at every width of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.coupling.couple import Group
from onnxprune.probing.curves import WidthCurve, WidthCurves
from onnxprune.probing.sensitivities import Sensitivities

Widths = Mapping[str, int]
"""Channels that stay, by group name."""


@dataclass(frozen=True, slots=True)
class Order:
    """Scores, of which the lowest go first, and the width curves that were measured with them."""

    scores: Sensitivities
    curves: WidthCurves | None = None


def losses_at_widths(orders: Sequence[Order], groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """For each group the loss `[size + 1]` at each width under the best order; nothing where an order has no curves."""
    curves = [order.curves for order in orders if order.curves is not None]
    if len(curves) < len(orders):
        return {}
    return {group.name: np.min([losses_along(one.of(group.name)) for one in curves], axis=0) for group in groups}


def losses_along(curve: WidthCurve) -> np.ndarray:
    """
    The loss `[size + 1]` at each width, between those that were measured on a straight line.

    A group that gets narrower never gains: where noise says so, the loss of the wider one stands.
    """
    measured = np.maximum.accumulate(np.maximum(curve.losses, 0.0))
    widths, losses = [*curve.widths[::-1]], [*measured[::-1]]
    if curve.widths[0] < curve.size:
        widths, losses = [*widths, curve.size], [*losses, 0.0]
    return np.asarray(np.interp(np.arange(curve.size + 1), widths, losses))


def best_scores(orders: Sequence[Order], widths: Widths) -> Sensitivities:
    """For each group the scores of the order that loses least at its width."""
    first = orders[0].scores
    if len(orders) == 1 or any(order.curves is None for order in orders):
        return first
    entries = []
    for group, width in widths.items():
        losses = [losses_along(order.curves.of(group))[width] for order in orders if order.curves is not None]
        scores = orders[int(np.argmin(losses))].scores
        entries.append(next(entry for entry in scores.groups if entry.name == group))
    told = next((order.scores for order in orders if order.scores.loss), first)
    return replace(told, groups=tuple(entries), criterion="auto")
