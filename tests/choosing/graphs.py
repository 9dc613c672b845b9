"""Small graphs and scores for plans to be made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from onnxprune.choosing.plan import Plan
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.probing.sensitivities import Criterion, Sensitivities, sensitivities_of
from onnxprune.reading.read import read
from tests.models import build


@cache
def nine_neurons() -> Couplings:
    """The textbook's hidden layer: nine neurons, group "hidden"."""
    return couple(read(build("hidden = Gemm(x[N,4], w1[4,9])\n b = Relu(hidden)\n y = Gemm(b, w2[9,3])")))


@cache
def three_layers() -> Couplings:
    """A residual network with groups of 12, 8 and 5 channels: "stem", "inner" and "head"."""
    return couple(
        read(
            build("""
                stem = Conv(x[N,3,4,4], stem_w[12,3,1,1], stem_b[12])
                inner = Conv<pads=[1,1,1,1]>(stem, inner_w[8,12,3,3])
                outer = Conv(inner, outer_w[12,8,1,1])
                sum = Add(stem, outer)
                head = Conv(sum, head_w[5,12,1,1])
                flat = Flatten(head)
                y = Gemm(flat, out_w[80,3])
            """)
        )
    )


def scored(
    couplings: Couplings, scores: Mapping[str, Sequence[float] | np.ndarray], criterion: Criterion = "sensitivity"
) -> Sensitivities:
    """These scores, as if measured."""
    return sensitivities_of(couplings, {name: np.array(s, float) for name, s in scores.items()}, criterion=criterion)


def some_scores(couplings: Couplings, seed: int, criterion: Criterion = "sensitivity") -> Sensitivities:
    """Random scores of both signs, some of them equal."""
    random = np.random.default_rng(seed)
    scores = {group.name: random.integers(-9, 10, group.size) / 10 for group in couplings.groups}
    return scored(couplings, scores, criterion)


def widths(plan: Plan) -> dict[str, int]:
    """How many channels stay in each group."""
    return {group.name: len(group.kept) for group in plan.groups}


def costs(couplings: Couplings, plan: Plan) -> dict[str, float]:
    """What the pruned model costs."""
    priced = {"macs": couplings.costs.macs, "params": couplings.costs.params, "size": couplings.costs.bytes}
    kept = {dim: len(stay) for dim, stay in plan.kept(couplings).items()}
    return {name: cost.at(kept) for name, cost in priced.items()}
