"""
A model of latency: what a network takes at widths that it does not have yet.

Each layer is timed by itself at a few widths of each of its groups. In between, its time is a sum

    a · 1  +  b · multiplications  +  c · numbers read  +  d · numbers made  +  e · weights,     a ... e ≥ 0

with all widths counted in whole stairs, fitted by least squares of relative errors. What layers take where they stand,
side by side with others, is told by a profile of the whole model, and scales each one's sum. A profile makes much of
small kernels, so last the model is run whole, beside some that are pruned evenly, and all that changes with the widths
is scaled by one factor, all that does not by another, until the sums are what these take.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]  # scipy brings no types

from onnxprune.coupling.costs import Polynomial, Stair, Staircase, Term, replaced
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.coupling.types import facts_where
from onnxprune.probing.calibration import Calibration
from onnxprune.rules.axes import Axis, Dim
from onnxprune.rules.facts import Macs
from onnxprune.timing.correction import SHARES, set_right
from onnxprune.timing.in_place import times_of_layers
from onnxprune.timing.layers import Layer, Layers
from onnxprune.timing.setting import Setting
from onnxprune.timing.stairs import Stairs
from onnxprune.timing.times import LayerTimes
from onnxprune.timing.widths import dims_at, even, nearest

MADE = 3
"""The place of the numbers made among what a layer's time is a sum of."""


@dataclass(frozen=True)
class LatencyModel:
    """
    `cost` are milliseconds of a run in the widths of Dims; `deviation` is how far the layers' times lie from it, on
    average, as a share, and `whole_deviation` how far those of whole models do. `timed` of so many `layers` could be
    timed by themselves: the others count as they are.
    """

    cost: Staircase
    deviation: float
    whole_deviation: float
    timed: int
    layers: int


def latency_model(
    couplings: Couplings,
    groups: Sequence[Group],
    stairs: Mapping[str, Stairs],
    times: LayerTimes,
    calibration: Calibration,
    setting: Setting,
) -> LatencyModel:
    """
    The latency of the model in the widths of these groups.

    Raises:
        ModelError: ONNX Runtime does not take the model.
    """
    layers = times.layers
    (in_place,) = times_of_layers([couplings.graph.model], layers, calibration, setting)
    parts, deviations, constant = [moved(layers, in_place.get(None, 0.0))], [], 0.0
    for number, layer in enumerate(layers.all):
        here = in_place.get(number, 0.0)
        fitted = fit(layer, groups, stairs, times) if here else None
        if fitted is None:
            constant += here
            continue
        stair, deviation = fitted
        parts.append(stair.times(here / max(stair.at({}), 1e-9)))
        deviations.append((deviation, here))
    cost, off = set_right(Staircase(tuple(parts), constant), couplings, groups, stairs, calibration, setting)
    shares = np.array(deviations).reshape(-1, 2)
    deviation = float(np.average(shares[:, 0], weights=shares[:, 1])) if shares.size else 0.0
    return LatencyModel(cost, deviation, off, len(deviations), len(layers.all))


def moved(layers: Layers, milliseconds: float) -> Stair:
    """What changes of layout take, which are no layer's: in proportion to the numbers that are made."""
    made = [features_of(layer, layers)[MADE] for layer in layers.all]
    every = Stair(Polynomial(tuple(term for polynomial in made for term in polynomial.terms)), {})
    return every.times(milliseconds / max(every.at({}), 1.0))


def fit(
    layer: Layer, groups: Sequence[Group], stairs: Mapping[str, Stairs], times: LayerTimes
) -> tuple[Stair, float] | None:
    """The layer's time in microseconds, and the mean deviation; None where no group bears on it or it is not timed."""
    own = [group for group in groups if not layer.dims.isdisjoint(group.dims)]
    known = [stairs.get(group.name) or even(group) for group in own]
    points = list(dict.fromkeys(points_of(own, known)))
    if len(points) < 2:
        return None
    widths = [dims_at(own, point) for point in points]
    timed = times.of(layer, widths)
    if timed is None or not timed.own.all():
        return None
    steps = {group.dims[0]: found.edge for group, found in zip(own, known, strict=True) if len(group.dims) == 1}
    features = [Stair(feature, steps) for feature in features_of(layer, times.layers)]
    table = np.array([[feature.at(one) for feature in features] for one in widths])
    relative = table / timed.own[:, None]
    size = np.maximum(relative.max(0), 1e-30)
    factors = nnls(relative / size, np.ones(len(points)))[0] / size
    deviation = float(np.abs(table @ factors / timed.own - 1).mean())
    terms = [
        Term(term.owner, term.factor * factor, term.axes)
        for feature, factor in zip(features, factors, strict=True)
        for term in feature.polynomial.terms
        if factor
    ]
    return Stair(Polynomial(tuple(terms)), steps), deviation


def points_of(groups: Sequence[Group], stairs: Sequence[Stairs]) -> Iterator[tuple[int, ...]]:
    """Widths of the groups: all at the same share, and each alone."""
    full = [group.size for group in groups]
    for share in SHARES:
        narrow = [nearest(found.widths, share * group.size) for group, found in zip(groups, stairs, strict=True)]
        yield tuple(narrow)
        for number in range(len(groups)):
            yield tuple(narrow[at] if at == number else full[at] for at in range(len(groups)))


def features_of(layer: Layer, layers: Layers) -> tuple[Polynomial, ...]:
    """What the layer's time is a sum of: one, multiplications, numbers read, numbers made, weights."""
    typing = layers.couplings.typing
    sizes = {dim: Dim(width) for dim, width in layers.at_batch.items()}

    def term(axes: Sequence[Axis]) -> Term:
        return Term(layer.name, 1.0, tuple(replaced(typing.solver.resolve(axis), sizes) for axis in axes))

    inside = set(layer.positions)
    macs = [
        term(fact.factors)
        for op, fact in facts_where(typing, Macs)
        if layers.couplings.graph.in_main(op.node.position) in inside
    ]
    read: list[Term] = []
    made: list[Term] = []
    weights: list[Term] = []
    for position in layer.positions:
        op = typing.stated[position].op
        for tensor in op.tensors:
            (weights if tensor.name in typing.knowable else read).append(term(tensor.axes))
        made.extend(term(tensor.axes) for tensor in op.results)
    one = Term(layer.name, 1.0, ())
    return tuple(Polynomial(tuple(terms)) for terms in ([one], macs, read, made, weights))
