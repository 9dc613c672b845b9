"""
Which weights of one layer go, and how those that stay are fitted anew.

A layer's squared error is a quadratic form in its weights, |V - W|²_H with H the Gram matrix of its inputs. If one
weight w goes and the others are fitted anew, it grows by w² / [H⁻¹]_ww: the weight's saliency. Here many go at a time,
the lowest first, in steps that become smaller, and after each step those that are left are fitted anew::

    weights ──► saliency ──► the lowest go ──► the rest fitted ──► saliency ──► ...

Sources: Hassibi and Stork 1993, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon (the saliency, with
H⁻¹ of the whole layer throughout); Zhu and Gupta 2017, To Prune, or Not to Prune, section 3 (the cubic schedule).
The sweep over columns of Frantar and Alistarh 2023, SparseGPT, section 3, costs less, but lost up to three times as
much on most layers tried, also when what it left was fitted anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.repairing.least_squares import PENALTIES, NormalEquations, both
from onnxprune.sparsifying.blocks import Candidates

PENALTY = 1e-2
"""Of the ridge while weights are chosen, in units of the features' mean square."""

STEPS = 8

ITERATIONS = 10
"""Of conjugate gradients after each step; the next one starts where they end."""

LAST_ITERATIONS = 30

TRIED_OUTPUTS = 256
"""Outputs of a layer that penalties are tried on, at most."""


@dataclass(frozen=True, slots=True)
class Quadratic:
    """A layer's squared error, with a ridge to the weights that were there: v'Hv - 2 v'`target` plus a constant."""

    matrix: np.ndarray
    target: np.ndarray

    def only(self, outputs: np.ndarray | slice) -> Quadratic:
        """That of these outputs."""
        return Quadratic(self.matrix, self.target[:, outputs])

    def fitted(self, start: np.ndarray, stays: np.ndarray, iterations: int) -> np.ndarray:
        """
        The weights of least error among those that are zero where `stays` is false, from `start` on.

        Conjugate gradients, all outputs at once; the error is never above that of `start`.
        """
        weights = np.where(stays, start, 0.0)
        scale = 1 / np.diag(self.matrix)[:, None]
        left = np.where(stays, self.target - self.matrix @ weights, 0.0)
        direction = scale * left
        length = (left * direction).sum(0)
        for _ in range(iterations):
            turned = np.where(stays, self.matrix @ direction, 0.0)
            step = length / np.maximum((direction * turned).sum(0), np.finfo(float).tiny)
            weights += step * direction
            left -= step * turned
            before, length = length, (left * scale * left).sum(0)
            direction = scale * left + length / np.maximum(before, np.finfo(float).tiny) * direction
        return weights


def quadratic(sums: NormalEquations, start: np.ndarray, penalty: float, *, constant_is_free: bool) -> Quadratic:
    """The normal equations with a ridge towards `start`; the constant costs nothing, or does not move."""
    features = len(sums.gram) - 1
    ridge = np.full(features + 1, penalty * max(float(np.trace(sums.gram)) - sums.rows, 1e-12) / features)
    ridge[-1] = 1e-9 * sums.rows if constant_is_free else 1e12 * sums.rows
    return Quadratic(sums.gram + np.diag(ridge), sums.cross + ridge[:, None] * start)


def surgery(
    error: Quadratic, counts: tuple[int, ...], candidates: Candidates
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Weights `[features + 1, outputs]` and which of them stay, after so many have gone, step by step.

    The constant, the last feature, always stays.
    """
    inverse = np.linalg.inv(error.matrix)
    weights = inverse @ error.target
    cost = np.diag(inverse)[:-1, None]
    stays = np.ones(weights.shape, bool)
    for count in counts:
        saliency = np.where(stays[:-1], np.square(weights[:-1]) / cost, -1.0)
        stays[:-1] = ~lowest(saliency, count, candidates)
        weights = error.fitted(weights, stays, ITERATIONS)
        yield weights, stays.copy()


def lowest(saliency: np.ndarray, count: int, candidates: Candidates) -> np.ndarray:
    """The `count` candidates of lowest saliency, as booleans of its shape."""
    found = np.zeros(saliency.size, bool)
    if count:
        numbers = np.where(candidates(saliency), saliency, np.inf)
        found[np.argpartition(numbers, count - 1, axis=None)[:count]] = True
    return found.reshape(saliency.shape)


def cubic(count: int) -> tuple[int, ...]:
    """How many are gone after each step, `count` in the end: many at first, few at last."""
    shares = 1 - (1 - np.arange(1, STEPS + 1) / STEPS) ** 3
    return tuple(int(number) for number in np.ceil(shares * count))


def settled(
    fitted: NormalEquations,
    held_out: NormalEquations,
    start: np.ndarray,
    weights: np.ndarray,
    stays: np.ndarray,
    *,
    constant_is_free: bool,
) -> tuple[np.ndarray, float | None]:
    """
    The weights that stay, fitted with the penalty that is best on rows held out; None and plain zeros if none helps.

    `start` are the weights before any went, `weights` those to begin with.
    """
    plain = np.where(stays, start, 0.0)
    some = np.arange(0, start.shape[1], -(-start.shape[1] // TRIED_OUTPUTS))

    def solved(sums: NormalEquations, penalty: float, outputs: np.ndarray | slice) -> np.ndarray:
        error = quadratic(sums, start, penalty, constant_is_free=constant_is_free).only(outputs)
        return error.fitted(weights[:, outputs], stays[:, outputs], LAST_ITERATIONS)

    errors = {penalty: misfit(held_out, solved(fitted, penalty, some), some) for penalty in PENALTIES}
    best = min(errors, key=lambda penalty: errors[penalty])
    if not errors[best] < misfit(held_out, plain[:, some], some):
        return plain, None
    return solved(both(fitted, held_out), best, slice(None)), best


def misfit(sums: NormalEquations, weights: np.ndarray, outputs: np.ndarray) -> float:
    """The squared error at these outputs, less the energy of what is wanted there."""
    return float((weights * (sums.gram @ weights - 2 * sums.cross[:, outputs])).sum())
