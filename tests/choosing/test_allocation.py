"""Widths of least loss: costs in the widths of groups, and the solver against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnxprune.choosing import choose as choosing
from onnxprune.choosing.allocation import Allocation, Cost, cost_in_groups
from onnxprune.choosing.choose import choose, choose_between
from onnxprune.choosing.orders import Order, losses_along
from onnxprune.choosing.targets import Limits, Targets
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import PlanError, TargetError, UsageError
from onnxprune.probing.curves import WidthCurve, WidthCurves
from onnxprune.reading.read import read
from tests.bundled import MODELS, bundled
from tests.choosing.graphs import costs, scored, some_scores, three_layers, widths
from tests.models import build

seeds = st.integers(0, 10_000)
shares = st.floats(0.02, 1)
bounds = st.dictionaries(st.sampled_from(["macs", "params", "size"]), shares, min_size=1)

GRAPHS = {
    "three layers": three_layers,
    "concat": lambda: couple(
        read(
            build("""
                a = Conv(x[N,3,4,4], w1[6,3,1,1])
                b = Conv(a, w2[5,6,1,1])
                c = Concat<axis=1>(a, b, a)
                d = Conv(c, w3[7,17,1,1])
                e = Flatten(d)
                y = Gemm(e, w4[112,2])
            """)
        )
    ),
    "heads": lambda: couple(
        read(
            build("""
                q = MatMul(x[N,7,5], wq[5,12])
                k = MatMul(x, wk[5,12])
                q0 = Reshape(q, s{0,0,3,4})
                k0 = Reshape(k, s)
                q1 = Transpose<perm=[0,2,1,3]>(q0)
                k1 = Transpose<perm=[0,2,3,1]>(k0)
                a = MatMul(q1, k1)
                y = ReduceSum(a, axes{1})
            """)
        )
    ),
    "grouped": lambda: couple(
        read(
            build("""
                a = Conv<pads=[1,1,1,1]>(x[N,3,6,6], w1[8,3,3,3], b1[8])
                b = Conv<group=4>(a, w2[12,2,3,3])
                y = Conv(b, w3[4,12,1,1])
            """)
        )
    ),
} | {name: (lambda name=name: bundled(name)) for name in MODELS}


SINGLE_POSITIONS = """
    a = Conv(x[N,3,4,4], w1[12,3,1,1])
    r = Reshape(a, s1{0,2,6,4,4})
    t = Transpose<perm=[0,2,1,3,4]>(r)
    q = Reshape(t, s2{0,12,4,4})
    b, c = Split<axis=1>(q, s3{5,7})
    d = Conv(b, w2[4,5,1,1])
    e = Conv(c, w3[4,7,1,1])
    y = Add(d, e)
"""
"""Groups of several positions, each a Dim of its own."""


def priced(couplings: Couplings) -> Mapping[str, Any]:
    return {"macs": couplings.costs.macs, "params": couplings.costs.params, "size": couplings.costs.bytes}


# Costs


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("cost", ["macs", "params", "size"])
def test_costs_in_groups_are_the_polynomials(name: str, cost: str) -> None:
    """At any widths, of some of the groups as well as of all; and so is a cost along one group's width."""
    couplings, random = GRAPHS[name](), np.random.default_rng(0)
    for groups in (couplings.groups, couplings.groups[::2]):
        found = cost_in_groups(priced(couplings)[cost], groups, 1.0)
        for _ in range(5):
            wide, narrow = (np.array([random.integers(1, group.size + 1) for group in groups]) for _ in range(2))
            assert found.at(wide) == pytest.approx(polynomial_at(couplings, cost, groups, wide), rel=1e-9)
            along = found.along(wide)
            for number in range(len(groups)):
                moved = np.where(np.arange(len(groups)) == number, narrow, wide)
                value = along(number, narrow[number : number + 1])
                assert value == pytest.approx(polynomial_at(couplings, cost, groups, moved), rel=1e-9)


def polynomial_at(couplings: Couplings, cost: str, groups: Sequence[Any], at: np.ndarray) -> float:
    """What the couplings say of the groups at these widths; each is one Dim."""
    dims = {dim: int(width) for group, width in zip(groups, at, strict=True) for dim in group.dims}
    return float(priced(couplings)[cost].at(dims))


@pytest.mark.parametrize("cost", ["macs", "params", "size"])
def test_costs_of_single_positions_are_right_at_full_width(cost: str) -> None:
    """Where a group has several Dims, each counts as its share of the group's width."""
    couplings = couple(read(build(SINGLE_POSITIONS)))
    assert any(len(group.dims) > 1 for group in couplings.groups)
    found = cost_in_groups(priced(couplings)[cost], couplings.groups, 1.0)
    full = np.array([group.size for group in couplings.groups])
    assert found.at(full) == pytest.approx(priced(couplings)[cost].at({}))


# The solver


def tiny(seed: int, bounded: Mapping[str, float], steps: int = 3) -> Allocation:
    """The three layers with random losses that fall with the width, bounds as shares."""
    couplings, random = three_layers(), np.random.default_rng(seed)
    losses, allowed = [], []
    for group in couplings.groups:
        each = random.exponential(size=group.size) ** random.choice([1, 3])
        losses.append(np.append(np.cumsum(np.sort(each) if seed % 3 else each)[::-1], 0.0))
        allowed.append(np.arange(group.size, 0, -int(random.integers(1, steps + 1)))[::-1])
    whole = {name: cost.at({}) for name, cost in priced(couplings).items()}
    costly = [cost_in_groups(priced(couplings)[name], couplings.groups, share * whole[name])
              for name, share in bounded.items()]  # fmt: skip
    return Allocation(tuple(losses), tuple(allowed), tuple(costly))


def holds(task: Allocation, at: Sequence[int] | np.ndarray) -> bool:
    return all(cost.at(np.array(at)) <= cost.bound * (1 + 1e-12) for cost in task.costs)


def best_of_all(task: Allocation) -> float | None:
    """By brute force: the least loss within the bounds, None if no widths are."""
    fitting = (np.array(at) for at in itertools.product(*task.allowed) if holds(task, at))
    return min((task.loss(at) for at in fitting), default=None)


@given(seeds, bounds)
def test_solutions_keep_to_bounds_and_widths(seed: int, bounded: Mapping[str, float]) -> None:
    """And there is none exactly where, by brute force, nothing fits; none is better than the best."""
    task = tiny(seed, bounded)
    found, best = task.solved(), best_of_all(task)
    assert (found is None) == (best is None)
    if found is not None:
        assert best is not None
        assert holds(task, found)
        assert all(width in allowed for width, allowed in zip(found, task.allowed, strict=True))
        assert task.loss(found) >= best - 1e-12


@pytest.mark.parametrize("names", [("macs",), ("params", "macs"), ("macs", "params", "size")])
def test_solutions_are_nearly_always_the_best(names: tuple[str, ...]) -> None:
    """Of 60 tasks at random, most are solved best of all, and on average a few per cent are lost at most."""
    random, more = np.random.default_rng(1), []
    for seed in range(60):
        task = tiny(seed, {name: random.uniform(0.1, 0.9) for name in names}, steps=2)
        found, best = task.solved(), best_of_all(task)
        if found is not None and best:
            more.append(task.loss(found) / best - 1)
    assert len(more) > 40
    assert np.mean(np.array(more) < 1e-9) > 0.8
    assert np.mean(more) < 0.03


@given(seeds, bounds)
def test_solutions_lose_no_more_than_even_widths(seed: int, bounded: Mapping[str, float]) -> None:
    """All groups cut down to the same share are within the bounds, too, but lose as much or more."""
    task = tiny(seed, bounded, steps=1)
    sizes = np.array([allowed[-1] for allowed in task.allowed])
    evenly = (np.maximum(1, (share * sizes).astype(int)) for share in np.linspace(1, 0.01, 100))
    even = next((at for at in evenly if holds(task, at)), None)
    assume(even is not None)
    found = task.solved()
    assert found is not None
    assert task.loss(found) <= task.loss(even) + 1e-12


@given(seeds, bounds)
def test_no_group_could_be_wider(seed: int, bounded: Mapping[str, float]) -> None:
    """Not even where a wider group would lose as much: what the bounds leave room for stays."""
    task = tiny(seed, bounded)
    flat = replace(task, losses=tuple(np.where(losses < losses.max() / 2, 0, losses) for losses in task.losses))
    for one in (task, flat):
        found = one.solved()
        assume(found is not None)
        for group, allowed in enumerate(one.allowed):
            for width in allowed[allowed > found[group]]:
                assert not holds(one, [*found[:group], width, *found[group + 1 :]])


def test_without_bounds_every_group_stays_as_wide_as_it_may() -> None:
    """There is nothing to save."""
    task = tiny(0, {})
    assert list(task.solved()) == [allowed[-1] for allowed in task.allowed]


def test_what_went_for_nothing_comes_back() -> None:
    """The cheapest first step was in vain, since another group has to go all the way: it is taken back."""
    cost = Cost(np.array([1.0, 1.0]), np.array([[1, 0], [0, 1]]), bound=11.0)
    one, other = np.where(np.arange(11) < 10, 1.0, 0.0), np.interp(np.arange(11), [1, 6, 10], [3, 0.2, 0])
    task = Allocation((one, other), (np.array([1, 10]), np.array([1, 6, 10])), (cost,))
    assert list(task.solved()) == [1, 10]


# Plans by width curves


def curved(couplings: Couplings, seed: int, noise: float = 0.2) -> WidthCurves:
    """Random width curves, measured at every third width; noise lets some of them be flat, or fall."""
    random, found = np.random.default_rng(seed), []
    for group in couplings.groups:
        at = tuple(range(group.size, 0, -3))
        losses = np.cumsum(random.exponential(size=len(at)) - noise) * random.uniform(0.1, 3)
        found.append(WidthCurve(group.name, group.size, at, (0.0, *losses[1:]), (0.0,) * len(at)))
    return WidthCurves("onnxprune-curves", 1, tuple(found), "sensitivity", "kl", 8)


limits = st.builds(Limits, min_channels=st.integers(1, 4), multiple_of=st.integers(1, 4))


@given(seeds, bounds, limits)
def test_plans_by_curves_keep_to_everything(seed: int, bounded: Mapping[str, float], limits: Limits) -> None:
    """All bounds hold together; widths are multiples or full; in each group the lowest scores go."""
    couplings, scores = three_layers(), some_scores(three_layers(), seed)
    try:
        plan = choose(couplings, scores, Targets(**bounded), limits, curves=curved(couplings, seed))
    except TargetError:
        assume(False)
        raise
    found = costs(couplings, plan)
    assert all(found[name] <= share * priced(couplings)[name].at({}) for name, share in bounded.items())
    for group in plan.groups:
        width = len(group.kept)
        assert width == group.size or (width % limits.multiple_of == 0 and width >= limits.min_channels)
        importance = scores.importance(group.name)
        assert np.delete(importance, group.kept).max(initial=0) <= importance[list(group.kept)].min()


def lost(orders: Sequence[Order], macs: float) -> float:
    """The sum of losses of the plan, for each group by the best order, as its curves say."""
    plan, _ = choose_between(three_layers(), orders, Targets(macs=macs))
    return sum(min(losses_along(order.curves.of(name))[width] for order in orders)
               for name, width in widths(plan).items())  # fmt: skip


def test_tighter_bounds_lose_no_less() -> None:
    """But for one solution in a hundred, which misses the best."""
    random, gains = np.random.default_rng(0), []
    for seed in range(100):
        order = Order(some_scores(three_layers(), seed), curved(three_layers(), seed))
        tight, loose = np.sort(random.uniform(0.1, 1, 2))
        gains.append(lost([order], loose) > lost([order], tight) + 1e-12)
    assert sum(gains) <= 1


def test_bounds_hold_where_a_group_has_many_dims() -> None:
    """With curves as without."""
    couplings = couple(read(build(SINGLE_POSITIONS)))
    for macs, curves in itertools.product((0.5, 0.6, 0.75, 0.9), (None, curved(couplings, 0))):
        plan = choose(couplings, some_scores(couplings, 0), Targets(macs=macs), curves=curves)
        assert costs(couplings, plan)["macs"] <= macs * couplings.costs.macs.at({})


def test_bounds_hold_where_costs_are_thought_too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they can be of groups of several Dims: the plan aims lower until the bounds hold."""
    couplings = three_layers()

    def hopeful(*args: Any) -> Cost:
        cost = cost_in_groups(*args)
        return replace(cost, factors=0.8 * cost.factors)

    monkeypatch.setattr(choosing, "cost_in_groups", hopeful)
    for seed in range(10):
        plan = choose(couplings, some_scores(couplings, seed), Targets(macs=0.5), curves=curved(couplings, seed, 0.0))
        assert 0.35 < costs(couplings, plan)["macs"] / couplings.costs.macs.at({}) <= 0.5


def test_an_impossible_bound_is_refused_with_curves_too() -> None:
    """By the same words as without."""
    couplings = three_layers()
    messages = []
    for curves in (None, curved(couplings, 0)):
        with pytest.raises(TargetError, match=r"the least reachable is [\d,]+ ") as refusal:
            choose(couplings, some_scores(couplings, 0), Targets(macs=2), curves=curves)
        messages.append(str(refusal.value))
    assert messages[0] == messages[1]


@given(seeds)
def test_curves_never_gain_by_narrowing(seed: int) -> None:
    """The loss at every width lies between those measured beside it; noise counts for nothing."""
    for curve in curved(three_layers(), seed).groups:
        losses = losses_along(curve)
        assert losses[curve.size] == 0
        assert (np.diff(losses) <= 0).all()
        worst = np.maximum.accumulate(np.maximum(curve.losses, 0))
        np.testing.assert_allclose(losses[list(curve.widths)], worst)


@given(seeds, st.floats(0.2, 0.9))
def test_the_order_that_loses_less_decides(seed: int, macs: float) -> None:
    """Group by group, the channels that stay are those of the order whose curve is lower at the width."""
    couplings = three_layers()
    orders = [Order(some_scores(couplings, seed + n), curved(couplings, seed + n)) for n in (0, 1)]
    plan, decided = choose_between(couplings, orders, Targets(macs=macs))
    for group in plan.groups:
        lost = [losses_along(order.curves.of(group.name))[len(group.kept)] for order in orders]
        scores = orders[int(np.argmin(lost))].scores
        assert decided.of(group.name).tolist() == scores.of(group.name).tolist()
        kept, gone = list(group.kept), np.delete(np.arange(group.size), group.kept)
        assert scores.importance(group.name)[gone].max(initial=0) <= scores.importance(group.name)[kept].min()
    assert decided.criterion == "auto"


def test_two_orders_lose_no_more_than_one() -> None:
    """But for one solution in a hundred, which misses the best; and mostly less."""
    random, ratios = np.random.default_rng(0), []
    for seed in range(100):
        orders = [Order(some_scores(three_layers(), n), curved(three_layers(), n)) for n in (seed, seed + 1000)]
        macs = random.uniform(0.1, 0.9)
        ratios.append(lost(orders, macs) / max(lost(orders[:1], macs), 1e-9))
    assert np.sum(np.array(ratios) > 1 + 1e-9) <= 1
    assert np.mean(ratios) < 0.8


# What is asked for


def test_what_is_known_decides_the_allocation() -> None:
    """Curves before losses before nothing."""
    couplings, targets = three_layers(), Targets(macs=0.5)
    losses, sizes, curves = some_scores(couplings, 0), some_scores(couplings, 0, "magnitude"), curved(couplings, 0)
    usual = {"curves": (losses, curves), "global": (losses, None), "uniform": (sizes, None)}
    plans = []
    for name, (scores, known) in usual.items():
        plans.append(choose(couplings, scores, targets, curves=known))
        assert plans[-1] == choose(couplings, scores, targets, curves=known, allocation=name)
    assert len({tuple(widths(plan).values()) for plan in plans}) == 3


def test_uniform_is_even() -> None:
    """Every group keeps the same share, give or take a channel."""
    couplings = three_layers()
    plan = choose(couplings, some_scores(couplings, 0), Targets(macs=0.5), allocation="uniform")
    left = [len(group.kept) / group.size for group in plan.groups]
    assert max(left) - min(left) <= 1 / min(group.size for group in plan.groups)


@pytest.mark.parametrize("criterion", ["magnitude", "activation", "redundancy", "random"])
def test_global_takes_losses(criterion: Any) -> None:
    """Scores that only order the channels of a group are not compared across groups."""
    couplings = three_layers()
    with pytest.raises(UsageError, match=rf"scores that are losses, found criterion '{criterion}'.* curves or uniform"):
        choose(couplings, some_scores(couplings, 0, criterion), Targets(macs=0.5), allocation="global")


def test_mistakes_are_refused() -> None:
    """An allocation nobody knows, curves that are not there, and curves that leave a group out."""
    couplings, scores = three_layers(), some_scores(three_layers(), 0)
    with pytest.raises(UsageError, match="Expected an allocation among curves, global, uniform, found 'fair'"):
        choose(couplings, scores, Targets(macs=0.5), allocation="fair")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Expected width curves for allocation curves, found none\. Measure them"):
        choose(couplings, scores, Targets(macs=0.5), allocation="curves")
    curves = curved(couplings, 0)
    fewer = WidthCurves("onnxprune-curves", 1, curves.groups[1:], "sensitivity", "kl", 8)
    with pytest.raises(PlanError, match=r"The curves say nothing about group 'stem'\. Measure it, or leave it out"):
        choose(couplings, scores, Targets(macs=0.5), curves=fewer)
    few = scored(couplings, {"stem": np.ones(12)})
    assert choose(couplings, few, Targets(macs=0.9), Limits(only=("stem",)), curves=curves).removed > 0
