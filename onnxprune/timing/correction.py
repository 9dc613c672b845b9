"""What layers add up to, set right by whole models: the original, and some that are pruned evenly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]  # scipy brings no types

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.costs import Polynomial, Stair, Staircase
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import ModelError
from onnxprune.probing.calibration import Calibration
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rules.axes import Dim
from onnxprune.timing.setting import Setting
from onnxprune.timing.stairs import Stairs
from onnxprune.timing.whole import latency
from onnxprune.timing.widths import dims_at, even, nearest

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of each group, the widths at which layers are timed: all groups together, and each by itself; then whole models."""

WHOLE_SECONDS = 3.0
"""For all whole models together."""

MOST_BYTES = 2**29
"""Of a model that is held several times over, narrower ones beside it; a larger one is run alone."""

Plans = Sequence[tuple[Mapping[Dim, int], float]]
"""Widths of whole models, and the milliseconds that they take, the original first."""


def set_right(
    cost: Staircase,
    couplings: Couplings,
    groups: Sequence[Group],
    stairs: Mapping[str, Stairs],
    calibration: Calibration,
    setting: Setting,
) -> tuple[Staircase, float]:
    """
    The cost that fits whole models, and how far it still is from them, on average, as a share.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    plans = whole_plans(couplings, groups, stairs, calibration, setting)
    found = corrected(cost, plans)
    return found, float(np.mean([abs(found.at(widths) / milliseconds - 1) for widths, milliseconds in plans]))


def whole_plans(
    couplings: Couplings,
    groups: Sequence[Group],
    stairs: Mapping[str, Stairs],
    calibration: Calibration,
    setting: Setting,
) -> Plans:
    """The model and some that keep the same share of every group, run in turn; it alone where they cannot be run."""
    widths, models = [], []
    for share in SHARES if couplings.graph.file_bytes < MOST_BYTES else SHARES[:1]:
        narrow = {
            group.name: nearest((stairs.get(group.name) or even(group)).widths, share * group.size) for group in groups
        }
        widths.append(dims_at(groups, [narrow[group.name] for group in groups]))
        kept = {name: np.arange(width) for name, width in narrow.items()}
        models.append(rewrite_kept(couplings, plan_of(couplings, kept).kept(couplings)))
    try:
        found = latency(models, calibration, setting, seconds=WHOLE_SECONDS)
    except ModelError:  # of a narrow one it is told when such a plan is made
        found = latency(models[:1], calibration, setting, seconds=WHOLE_SECONDS)
    assert found is not None
    return list(zip(widths, found.milliseconds, strict=False))


def corrected(cost: Staircase, plans: Plans) -> Staircase:
    """The cost with what changes with widths, and what does not, each scaled so that it fits these whole models."""
    moving, fixed = part_of(cost, moves=True), part_of(cost, moves=False)
    wanted = np.array([milliseconds for _, milliseconds in plans])
    factors = np.ones(2)
    if len(plans) > len(factors):
        table = np.array([[moving.at(widths), fixed.at(widths)] for widths, _ in plans])
        factors = nnls(table / wanted[:, None], np.ones(len(plans)))[0]
    factors *= wanted[0] / (factors @ [moving.at({}), fixed.at({})])  # of the original, what was measured
    parts = (*(part.times(factors[0]) for part in moving.parts), *(part.times(factors[1]) for part in fixed.parts))
    return Staircase(parts, factors[1] * fixed.constant)


def part_of(cost: Staircase, *, moves: bool) -> Staircase:
    """The terms that change with widths, or those that do not."""
    parts = (
        Stair(Polynomial(tuple(term for term in part.polynomial.terms if bool(term.axes) is moves)), part.steps)
        for part in cost.parts
    )
    return Staircase(tuple(part for part in parts if part.polynomial.terms), 0.0 if moves else cost.constant)
