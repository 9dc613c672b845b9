"""The model of latency, the cache of times, and a whole run with a bound on the latency."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnxprune
from onnxprune import beginning
from onnxprune.choosing.allocation import cost_in_groups
from onnxprune.coupling.costs import Polynomial, Stair, Staircase, Term
from onnxprune.coupling.couple import Couplings
from onnxprune.errors import TargetError, UsageError
from onnxprune.pipeline import sweep
from onnxprune.probing.calibration import gather
from onnxprune.probing.proxies import magnitudes
from onnxprune.rules.axes import Dim
from onnxprune.timing import timing
from onnxprune.timing.correction import corrected
from onnxprune.timing.layers import layers_at
from onnxprune.timing.setting import Setting
from onnxprune.timing.stairs import stairs_of
from onnxprune.timing.times import LayerTimes, folder
from tests.bundled import bundled, digits, model_path
from tests.choosing.graphs import three_layers

seeds = st.integers(0, 1000)
ONE = Setting(threads=1)


@pytest.fixture
def really_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast widths are those of this machine."""
    monkeypatch.setattr(beginning, "fast_widths_of", timing.fast_widths_of)


@given(seeds, st.sampled_from([1, 4, 8]), st.sampled_from([1, 16]))
def test_a_staircase_in_groups_is_the_staircase(seed: int, one: int, other: int) -> None:
    """At any widths, and along each single one; the allocation sees what the plan is held against."""
    couplings, random = three_layers(), np.random.default_rng(seed)
    groups = couplings.groups
    dims = [group.dims[0] for group in groups]
    parts = tuple(
        Stair(couplings.costs.macs.touching(frozenset([dim])), dict(zip(dims, steps, strict=False)))
        for dim, steps in zip(dims, ((one, other), (other, one)), strict=False)
    )
    staircase = Staircase(parts, 3.0)
    found = cost_in_groups(staircase, groups, 1.0)
    for _ in range(4):
        wide = np.array([random.integers(1, group.size + 1) for group in groups])
        assert found.at(wide) == pytest.approx(staircase.at(dict(zip(dims, map(int, wide), strict=True))), rel=1e-9)
        along = found.along(wide)
        for number, group in enumerate(groups):
            tried = np.arange(1, group.size + 1)
            expected = [
                staircase.at({**dict(zip(dims, map(int, wide), strict=True)), dims[number]: int(w)}) for w in tried
            ]
            assert along(number, tried) == pytest.approx(expected, rel=1e-9)


def test_a_staircase_may_stand_for_another_model() -> None:
    """Dims take the places of others; widths that are not given are those of the new ones."""
    old, new = Dim(8), Dim(5)
    cost = Staircase((Stair(Polynomial((Term("layer", 2.0, (old,)),)), {old: 4}),), 1.0)
    assert [cost.at({old: width}) for width in (8, 5, 4)] == [17.0, 17.0, 9.0]
    again = cost.instead({old: new})
    assert again.at({}) == 17.0
    assert again.at({new: 4}) == 9.0
    assert again.smooth.at({new: 5}) == 11.0


def test_times_are_kept_for_later_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run times nothing; a damaged line is timed again, and a folder that cannot be is no failure."""
    monkeypatch.setenv("ONNXPRUNE_TIMINGS", str(tmp_path / "kept"))
    couplings = bundled("mlp_torch")

    def measured() -> int:
        times = LayerTimes(layers_at(couplings, 1), ONE)
        stairs_of(couplings.groups, times)
        return times.measured

    assert folder() == tmp_path / "kept"
    assert measured() > 0
    assert measured() == 0
    (file,) = (tmp_path / "kept").glob("*.jsonl")
    text = file.read_text(encoding="utf-8")
    file.write_text(text[:-20], encoding="utf-8")
    assert measured() == 1
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ONNXPRUNE_TIMINGS", str(tmp_path / "file" / "below"))
    assert measured() > 0


def test_the_model_of_latency_rises_with_widths() -> None:
    """It gives the whole at full widths, less below, and nothing negative; most layers stand by themselves."""
    couplings = bundled("resnet_torchscript")
    groups = [group for group in couplings.groups if group.exact]
    stairs = timing.fast_widths_of(couplings, groups, ONE)
    found = timing.latency_of_widths(couplings, groups, stairs, gather(couplings.graph, None), ONE)
    assert found.timed > 0.8 * found.layers
    assert found.deviation < 0.5
    shares = [
        found.cost.at({dim: max(1, int(share * dim.size)) for group in groups for dim in group.dims})
        for share in (0.1, 0.3, 0.6, 1.0)
    ]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.9 * shares[-1]
    assert shares[-1] == pytest.approx(found.cost.at({}))


@given(st.floats(0.2, 5.0), st.floats(0.0, 5.0))
def test_whole_models_set_right_what_layers_add_up_to(moving: float, fixed: float) -> None:
    """What changes with widths and what does not have been measured too long or too short, each by one factor."""
    dim = Dim(64)
    told = Staircase((Stair(Polynomial((Term("a", 0.5, (dim,)), Term("a", 7.0, ()))), {dim: 16}),), 3.0)
    plans = [({dim: width}, moving * 0.5 * -(-width // 16) * 16 + fixed * 10.0) for width in (64, 48, 32, 16)]
    found = corrected(told, plans)
    assert [found.at(widths) for widths, _ in plans] == pytest.approx([milliseconds for _, milliseconds in plans])


@pytest.mark.usefixtures("really_timed")
def test_a_bound_on_the_latency_is_aimed_at_and_told() -> None:
    """Widths are among the fast ones; the report says what was wanted, predicted and measured, with both threads."""
    result = onnxprune.prune(
        model_path("resnet_torchscript"),
        digits("resnet_torchscript", 32),
        latency="60%",
        threads=1,
        criterion="magnitude",
        compensate=False,
        allocation="uniform",
    )
    speed, timed = result.report.speed, result.report.latency
    assert speed is not None
    assert timed is not None
    assert speed.wanted == pytest.approx(0.6)
    assert speed.predicted is not None
    assert timed.threads == 1
    assert result.plan.removed > 0
    assert timed.ratio < 0.85
    assert json.loads(result.report.to_json())["settings"]["latency"] == "60%"


@pytest.mark.slow
@pytest.mark.usefixtures("really_timed")
@pytest.mark.parametrize("bound", ["70%", "50%"])
def test_a_bound_on_the_latency_is_met(bound: str) -> None:
    """Within what two timings of one model differ by, if nothing else runs; with rounds and repair too."""
    result = onnxprune.prune(
        model_path("resnet_torchscript"), digits("resnet_torchscript", 200), latency=bound, threads=1
    )
    assert result.report.latency is not None
    assert result.report.latency.ratio < 1.15 * float(bound.removesuffix("%")) / 100
    assert result.report.refitted


def test_a_bound_in_milliseconds_and_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds carry the price of time over to the smaller model: they end at the bound as predicted."""
    whole = made_up_for(bundled("mlp_sklearn")).at({})
    monkeypatch.setattr(beginning, "timed", lambda found, *_: (timing.Timing(), priced(found, made_up_for(found))))
    monkeypatch.setattr("onnxprune.pruner.Pruner._milliseconds", lambda _, model: size_of_hidden(model))
    result = onnxprune.prune(
        model_path("mlp_sklearn"), digits("mlp_sklearn", 64), latency=0.5 * whole, rounds=2, criterion="magnitude"
    )
    left = sum(len(group.kept) for group in result.plan.groups)
    assert 0.45 * whole <= left <= 0.51 * whole


def test_a_sweep_may_have_bounds_on_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of the MACs come first; a bound on the latency is that of its own model only."""
    whole = made_up_for(bundled("mlp_sklearn")).at({})
    monkeypatch.setattr(beginning, "timed", lambda found, *_: (timing.Timing(), priced(found, made_up_for(found))))
    monkeypatch.setattr("onnxprune.pruner.Pruner._milliseconds", lambda _, model: size_of_hidden(model))
    results = sweep(
        model_path("mlp_sklearn"),
        digits("mlp_sklearn", 64),
        macs=["60%"],
        latency=["70%", "40%"],
        criterion="magnitude",
    )
    left = [sum(len(group.kept) for group in result.plan.groups) / whole for result in results]
    assert results[0].report.pruned.macs <= 0.6 * results[0].report.original.macs
    assert left[1:] == pytest.approx([0.7, 0.4], abs=0.03)
    told = [result.report.speed.wanted if result.report.speed else None for result in results]
    assert told == [None, pytest.approx(0.7), pytest.approx(0.4)]


def made_up_for(couplings: Couplings) -> Staircase:
    """A millisecond for each channel."""
    dims = [dim for group in couplings.groups for dim in group.dims]
    return Staircase((Stair(Polynomial(tuple(Term("all", 1.0, (dim,)) for dim in dims)), {}),), 0.0)


def priced(couplings: Couplings, cost: Staircase) -> Couplings:
    """The couplings with this latency."""
    return replace(couplings, costs=replace(couplings.costs, latency=cost))


def size_of_hidden(model: object) -> float:
    """Channels that are left in all groups, counted in the model itself."""
    found = onnxprune.couple(onnxprune.read(model))  # type: ignore[arg-type]
    return float(sum(group.size for group in found.groups))


def test_a_latency_that_was_not_measured_is_no_target() -> None:
    """Of the stage by itself, which times nothing."""
    couplings = bundled("mlp_torch")
    scores = onnxprune.probe(couplings, digits("mlp_torch", 8))
    with pytest.raises(UsageError, match="Expected couplings whose latency was measured"):
        onnxprune.choose(couplings, scores, onnxprune.Targets(latency=0.5))


@given(seeds, st.floats(0.2, 0.95))
def test_no_group_could_be_wider(seed: int, share: float) -> None:
    """Among the widths there are, with all bounds held; whichever these are."""
    couplings, random = three_layers(), np.random.default_rng(seed)
    widths = {
        group.name: (*sorted({int(width) for width in random.integers(1, group.size, 3)}), group.size)
        for group in couplings.groups
    }
    limits = onnxprune.Limits(widths=widths)
    scores = magnitudes(couplings, couplings.groups)
    macs = couplings.costs.macs
    try:
        plan = onnxprune.choose(couplings, scores, onnxprune.Targets(macs=share), limits, allocation="uniform")
    except TargetError:
        return
    left = {group.name: len(group.kept) for group in plan.groups}
    for group in couplings.groups:
        assert left[group.name] in widths[group.name]
        above = [width for width in widths[group.name] if width > left[group.name]]
        if above:
            wider = {**left, group.name: above[0]}
            dims = {one.dims[0]: wider[one.name] for one in couplings.groups}
            assert macs.at(dims) > share * macs.at({})


def test_groups_that_save_more_time_get_narrower_first() -> None:
    """Where nothing tells what they lose: the share of one is a power of that of the other."""
    couplings = three_layers()
    first, second = couplings.groups[:2]
    scores = magnitudes(couplings, couplings.groups)
    limits = onnxprune.Limits(paces={first.name: 3.0, second.name: 1 / 3})
    plan = onnxprune.choose(couplings, scores, onnxprune.Targets(macs=0.5), limits, allocation="uniform")
    left = {group.name: len(group.kept) / group.size for group in plan.groups}
    assert left[first.name] < left[second.name]
