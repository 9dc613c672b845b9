"""What holds of every plan."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from onnxprune.choosing.choose import choose
from onnxprune.choosing.plan import Plan
from onnxprune.choosing.targets import Limits, Targets
from onnxprune.coupling.couple import couple
from onnxprune.errors import PlanError, TargetError
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite
from tests.choosing.graphs import costs, scored, some_scores, three_layers, widths
from tests.models import build

seeds = st.integers(0, 10_000)
shares = st.floats(0.05, 1)
criteria = st.sampled_from(["sensitivity", "magnitude", "random"])
limits = st.builds(Limits, min_channels=st.integers(1, 6), multiple_of=st.integers(1, 5))


def reachable(seed: int, criterion: str, targets: Targets, limits: Limits | None = None) -> Plan:
    """The plan; the example is passed over where there is none."""
    try:
        return choose(three_layers(), some_scores(three_layers(), seed, criterion), targets, limits)
    except TargetError:
        assume(False)
        raise


@given(seeds, criteria, shares, shares, shares, limits)
def test_all_bounds_hold_together(
    seed: int, criterion: str, macs: float, params: float, size: float, limits: Limits
) -> None:
    """Whatever is bounded stays within its bound, whichever is the tightest."""
    couplings = three_layers()
    found = costs(couplings, reachable(seed, criterion, Targets(macs=macs, params=params, size=size), limits))
    whole = {"macs": couplings.costs.macs, "params": couplings.costs.params, "size": couplings.costs.bytes}
    for name, share in (("macs", macs), ("params", params), ("size", size)):
        assert found[name] <= share * whole[name].at({})


@given(seeds, criteria, shares, shares, limits)
def test_a_tighter_bound_never_keeps_more(seed: int, criterion: str, one: float, other: float, limits: Limits) -> None:
    """The channels kept under the tighter bound are among those kept under the looser."""
    tight = reachable(seed, criterion, Targets(macs=min(one, other)), limits)
    loose = reachable(seed, criterion, Targets(macs=max(one, other)), limits)
    for fewer, more in zip(tight.groups, loose.groups, strict=True):
        assert set(fewer.kept) <= set(more.kept)


def test_a_tighter_bound_never_keeps_more_below_the_floor() -> None:
    """Every group goes down to its floor before one goes below: so bounds that need that keep no more either."""
    model = build("""
        a = Gemm(x[N,8], w1[8,60])
        b = Relu(a)
        c = Gemm(b, w2[60,40])
        d = Relu(c)
        y = Gemm(d, w3[40,3])
    """)
    couplings = couple(read(model))
    scores = some_scores(couplings, 0)
    plans = [choose(couplings, scores, Targets(macs=macs)) for macs in np.linspace(0.04, 0.005, 20)]
    for looser, tighter in itertools.pairwise(plans):
        assert all(widths(tighter)[name] <= width for name, width in widths(looser).items())


@given(seeds, criteria, st.floats(0.2, 1), st.floats(0, 0.9), limits)
def test_widths_keep_to_the_limits(seed: int, criterion: str, macs: float, ratio: float, limits: Limits) -> None:
    """Every width is a multiple, or the full width, and not below the least."""
    plan = reachable(seed, criterion, Targets(macs=macs, ratio=ratio, threshold="mean"), limits)
    for group in plan.groups:
        width = len(group.kept)
        assert width == group.size or (width % limits.multiple_of == 0 and width >= limits.min_channels)


@given(seeds, st.floats(0, 0.99))
@example(0, 0.0)
@example(0, 0.5)
def test_a_ratio_removes_its_share_of_every_group(seed: int, ratio: float) -> None:
    """What stays is rounded down, but one channel always stays; a ratio of 0 removes nothing."""
    plan = reachable(seed, "sensitivity", Targets(ratio=ratio))
    for group in plan.groups:
        assert len(group.kept) == max(1, int((1 - ratio) * group.size + 1e-9))


@given(seeds, criteria, shares)
def test_the_lowest_scores_go_first(seed: int, criterion: str, macs: float) -> None:
    """Inside a group no channel that goes matters more than one that stays."""
    plan = reachable(seed, criterion, Targets(macs=macs))
    scores = some_scores(three_layers(), seed, criterion)
    for group in plan.groups:
        importance = scores.importance(group.name)
        removed = np.delete(importance, list(group.kept))
        assert removed.max(initial=0) <= importance[list(group.kept)].min()


@given(seeds, st.floats(-1, 1))
def test_a_threshold_removes_what_is_below_it(seed: int, threshold: float) -> None:
    """Channels whose score is below θ go, except for the last of a group."""
    plan = reachable(seed, "sensitivity", Targets(threshold=threshold))
    for group in plan.groups:
        importance = some_scores(three_layers(), seed).importance(group.name)
        assert len(group.kept) == max(1, (importance >= threshold).sum())


@given(seeds, criteria, st.sampled_from(["macs", "params", "size"]), limits)
def test_an_impossible_bound_names_the_least_reachable(seed: int, criterion: str, cost: str, limits: Limits) -> None:
    """The number in the message can be reached, and one less cannot."""
    couplings = three_layers()
    scores = some_scores(couplings, seed, criterion)
    with pytest.raises(TargetError) as refusal:
        choose(couplings, scores, Targets(**{cost: "2"}), limits)
    named = re.search(rf"Expected {cost} of at most 2 .* the least reachable is ([\d,]+) ", str(refusal.value))
    assert named is not None
    least = int(named[1].replace(",", ""))
    assert costs(couplings, choose(couplings, scores, Targets(**{cost: least}), limits))[cost] == least
    with pytest.raises(TargetError):
        choose(couplings, scores, Targets(**{cost: least - 1}), limits)


def test_an_impossible_target_names_every_bound_that_fails() -> None:
    """Each bound out of reach is named with its least, together with the limits and what to do."""
    couplings = three_layers()
    with pytest.raises(TargetError) as refusal:
        choose(
            couplings, some_scores(couplings, 0), Targets(macs="10%", params="99%", size=500), Limits(min_channels=4)
        )
    assert re.fullmatch(
        r"Expected macs of at most [\d,]+ \(10\.0%\), the least reachable is [\d,]+ \(\d+\.\d%\); "
        r"size of at most 500 \(\d+\.\d%\), the least reachable is [\d,]+ \(\d+\.\d%\), "
        r"within min-channels 4, multiple-of 1\. Ask for less, or relax the limits, --only or --skip\.",
        str(refusal.value),
    )


@given(seeds, criteria)
def test_the_plan_is_the_same_every_time(seed: int, criterion: str) -> None:
    """The same scores and targets give the same plan."""
    plans = [reachable(seed, criterion, Targets(macs="50%")) for _ in range(2)]
    assert plans[0] == plans[1]


@given(seeds, st.floats(0.3, 1))
def test_costs_are_those_of_the_model_written(seed: int, macs: float) -> None:
    """The polynomials say what the rewritten model's weights hold."""
    couplings = three_layers()
    plan = reachable(seed, "sensitivity", Targets(macs=macs))
    stored = sum(int(np.prod(tensor.dims)) for tensor in rewrite(couplings, plan).graph.initializer)
    assert costs(couplings, plan)["params"] == stored


def test_no_bound_removes_nothing() -> None:
    """A bound of the whole model is met by the model as it is."""
    plan = choose(three_layers(), some_scores(three_layers(), 0), Targets(macs="100%", params="100%", size="100%"))
    assert plan.removed == 0
    assert plan.tensors == {}


def test_only_chosen_groups_are_pruned() -> None:
    """Groups that --only leaves out keep all their channels."""
    couplings = three_layers()
    plan = choose(couplings, some_scores(couplings, 0), Targets(ratio=0.5), Limits(only=("inner",)))
    assert widths(plan) == {"stem": 12, "inner": 4, "head": 5}


def test_groups_without_scores_are_refused() -> None:
    """A group that may be pruned needs scores, and the message names it."""
    couplings = three_layers()
    scores = scored(couplings, {"stem": np.ones(12), "inner": np.ones(8)})
    with pytest.raises(PlanError, match=r"say nothing about group 'head'\. Measure it, or leave it out with --skip"):
        choose(couplings, scores, Targets(ratio=0.5))
    assert widths(choose(couplings, scores, Targets(ratio=0.5), Limits(skip=("head",))))["head"] == 5
