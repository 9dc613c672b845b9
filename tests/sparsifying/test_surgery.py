"""One layer: which weights go, and that those that stay are fitted as well as they can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.sparsifying.blocks import anything, excess, lowest_in_blocks
from onnxprune.sparsifying.sharing import Curve, shared_by_curves, shared_by_size
from onnxprune.sparsifying.surgery import cubic, lowest, quadratic, settled, surgery


def layer(seed: int, features: int = 12, outputs: int = 3) -> tuple[NormalEquations, NormalEquations, np.ndarray]:
    """Correlated inputs and what random weights make of them, to fit on and held out; and the weights."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((features, features))
    weights = np.vstack([rng.standard_normal((features, outputs)), rng.standard_normal(outputs)])
    found = []
    for rows in (400, 200):
        inputs = np.maximum(rng.standard_normal((rows, features)) @ mixing, 0)
        sums = NormalEquations(features, outputs)
        sums.add(inputs, inputs @ weights[:-1] + weights[-1])
        found.append(sums)
    return found[0], found[1], weights


def operated(sums: NormalEquations, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """After all steps."""
    *_, last = surgery(quadratic(sums, weights, 1e-2, constant_is_free=True), cubic(count), anything)
    return last


def test_the_rest_is_fitted_by_least_squares() -> None:
    """For any weights that stay: what conjugate gradients find solves the normal equations of those."""
    sums, _, weights = layer(0)
    stays = np.random.default_rng(1).random(weights.shape) < 0.5
    error = quadratic(sums, weights, 1e-2, constant_is_free=True)
    found = error.fitted(weights, stays, 200)
    for output, rest in enumerate(stays.T):
        exact = np.linalg.solve(error.matrix[np.ix_(rest, rest)], error.target[rest, output])
        np.testing.assert_allclose(found[rest, output], exact, rtol=1e-5, atol=1e-6)
    assert not found[~stays].any()


def test_each_iteration_fits_better() -> None:
    """The error never rises, however few iterations there are."""
    sums, _, weights = layer(2)
    stays = np.random.default_rng(3).random(weights.shape) < 0.4
    error = quadratic(sums, weights, 1e-2, constant_is_free=True)

    def value(found: np.ndarray) -> float:
        return float((found * (error.matrix @ found - 2 * error.target)).sum())

    values = [value(error.fitted(weights, stays, iterations)) for iterations in range(12)]
    assert all(later <= before + 1e-9 * abs(before) for before, later in itertools.pairwise(values))


def test_a_constant_that_is_not_free_does_not_move() -> None:
    """Where there is no bias to change."""
    sums, _, weights = layer(4)
    error = quadratic(sums, weights, 1e-2, constant_is_free=False)
    found = error.fitted(weights, np.vstack([np.zeros((12, 3), bool), np.ones((1, 3), bool)]), 50)
    np.testing.assert_allclose(found[-1], weights[-1], rtol=1e-6)


def test_the_first_to_go_costs_least() -> None:
    """By brute force over all weights, each removed and the others fitted anew."""
    sums, _, weights = layer(5)
    error = quadratic(sums, weights, 1e-6, constant_is_free=True)
    *_, (_, stays) = surgery(error, (1,), anything)
    costs = {}
    for feature, output in np.ndindex(12, 3):
        rest = np.arange(13) != feature
        fitted = np.zeros(13)
        fitted[rest] = np.linalg.solve(error.matrix[np.ix_(rest, rest)], error.target[rest, output])
        apart = fitted - weights[:, output]
        costs[feature, output] = apart @ error.matrix @ apart
    assert [tuple(place) for place in np.argwhere(~stays)] == [min(costs, key=lambda place: costs[place])]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("seed", range(5))
def test_it_loses_less_than_magnitude(seed: int, share: float) -> None:
    """On rows held out: less than the smallest numbers at zero, and than those with the others fitted anew."""
    sums, held_out, weights = layer(seed, 40, 8)
    count = int(share * 320)
    chosen, stays = operated(sums, weights, count)
    own, _ = settled(sums, held_out, weights, chosen, stays, constant_is_free=True)
    by_size = np.ones(weights.shape, bool)
    by_size[:-1] = ~lowest(np.abs(weights[:-1]), count, anything)
    plain = np.where(by_size, weights, 0.0)
    refitted, _ = settled(sums, held_out, weights, weights, by_size, constant_is_free=True)
    assert (stays == 0).sum() == (by_size == 0).sum() == count
    assert held_out.error(own) <= held_out.error(refitted) <= held_out.error(plain)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 3), (3, 5)])
def test_every_block_keeps_its_pattern(pattern: tuple[int, int]) -> None:
    """Also the last one, which is short."""
    stay, block = pattern
    sums, _, weights = layer(6, 14, 4)
    places = np.pad(np.arange(14), (0, -14 % block), constant_values=14).reshape(-1, block)
    real = (places < 14).sum(1)
    count = 4 * int(np.maximum(real - stay, 0).sum())
    error = quadratic(sums, weights, 1e-2, constant_is_free=True)
    *_, (found, _) = surgery(error, cubic(count), lowest_in_blocks(places, stay))
    assert excess(found[:-1], 0, pattern) == 0
    assert (found[:-1] == 0).sum() == count


def test_blocks_that_hold_too_much_are_counted() -> None:
    """Along the axis, each line for itself; a short block counts as if zeros followed."""
    weight = np.array([[1, 1, 0, 0, 1, 1], [1, 1, 1, 0, 1, 0]])
    assert excess(weight, 1, (2, 4)) == 1
    assert excess(weight, 1, (1, 4)) == 3
    assert excess(weight.T, 0, (2, 4)) == 1


def test_zeros_are_shared_where_they_cost_least() -> None:
    """By brute force over all ways to share them, for curves that bend up."""
    grid = (0, 2, 4, 6)
    curves = [Curve(grid, (0.0, 0.1, 0.5, 1.0)), Curve(grid, (0.0, 0.02, 0.1, 1.0)), Curve(grid, (0.0, 0.3, 0.7, 1.2))]
    for total in (2, 4, 8, 12, 18):
        ways = [way for way in itertools.product(range(4), repeat=3) if 2 * sum(way) == total]
        best = min(ways, key=lambda way: sum(curve.errors[at] for curve, at in zip(curves, way, strict=True)))
        assert shared_by_curves(curves, total) == tuple(2 * at for at in best)


def test_by_size_the_smallest_of_all_go() -> None:
    """As one list, whatever layer they are in."""
    assert shared_by_size([np.array([[1.0, 5.0]]), np.array([2.0, 3.0, 9.0])], 3) == (1, 2)
