"""Several rounds of pruning are one: a plan of the original for what all of them did."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.choosing.choose import choose
from onnxprune.choosing.plan import Plan, plan_of, plan_of_both, same_groups
from onnxprune.choosing.targets import Targets
from onnxprune.coupling.couple import Couplings, Group, couple
from onnxprune.errors import TargetError
from onnxprune.ordering.criteria import CRITERIA, Rank, Ranking
from onnxprune.ordering.evidence import Evidence
from onnxprune.pipeline import PruneResult, prune
from onnxprune.probing.calibration import gather
from onnxprune.probing.losses import prepare_loss
from onnxprune.probing.probe import loss_of
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite
from onnxprune.verifying.verify import verify
from tests.bundled import MODELS, bundled, digits, model_path
from tests.choosing.graphs import some_scores, three_layers
from tests.models import build

ATTENTION = """
    q = MatMul(x[N,7,5], wq[5,12])
    k = MatMul(x, wk[5,12])
    q0 = Reshape(q, s{0,0,3,4})
    k0 = Reshape(k, s)
    q1 = Transpose<perm=[0,2,1,3]>(q0)
    k1 = Transpose<perm=[0,2,3,1]>(k0)
    a = MatMul(q1, k1)
    y = ReduceSum(a, axes{1})
"""
"""Three heads of four numbers."""

FIRST_HEADS = "/blocks/blocks.0/attention/qkv/MatMul"


def at_random(couplings: Couplings, seed: int, ratio: float) -> Plan:
    """A share of every exact group goes."""
    return choose(couplings, some_scores(couplings, seed), Targets(ratio=ratio))


def smaller(couplings: Couplings, plan: Plan) -> Couplings:
    """What comes of the model."""
    return couple(read(rewrite(couplings, plan), input_shapes=couplings.graph.input_shapes))


def same(one: ModelProto, other: ModelProto) -> bool:
    """Bit for bit, but for the names of shapes that were changed twice."""
    return str(one).replace(".pruned.pruned", ".pruned") == str(other).replace(".pruned.pruned", ".pruned")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", [*MODELS, "three layers"])
def test_pruning_twice_equals_pruning_once_with_both(name: str, seed: int) -> None:
    """Bit for bit, whatever goes first; the groups in between are known again."""
    couplings = three_layers() if name == "three layers" else bundled(name)
    first = at_random(couplings, seed, 0.3)
    between = smaller(couplings, first)
    names = same_groups(first, between)
    assert names is not None
    then = at_random(between, seed + 1, 0.4)
    assert first.removed
    assert then.removed
    both = plan_of_both(couplings, first, then, names)
    assert both.removed == first.removed + then.removed
    assert same(rewrite(couplings, both), rewrite(between, then))


def test_a_plan_that_removes_nothing_changes_nothing() -> None:
    """Before or after another one."""
    couplings = bundled("resnet_dynamo")
    plan, nothing = at_random(couplings, 0, 0.3), plan_of(couplings, {})
    between = smaller(couplings, plan)
    names = {group.name: group.name for group in couplings.groups}
    assert plan_of_both(couplings, nothing, plan, names) == plan
    assert plan_of_both(couplings, plan, plan_of(between, {}), same_groups(plan, between) or {}) == plan


def one_head_left() -> tuple[Couplings, Plan, Couplings]:
    """The vision transformer with one head in its first block; the groups that were told apart by ":1" and ":2"."""
    couplings = bundled("vit_torchscript")
    plan = plan_of(couplings, {f"{FIRST_HEADS}:1": np.array([2]), f"{FIRST_HEADS}:2": np.arange(3, 15)})
    return couplings, plan, smaller(couplings, plan)


def test_a_group_that_changed_its_name_is_known_again() -> None:
    """With one head left there are no heads to prune, and the numbers of each head have the layer's plain name."""
    couplings, plan, between = one_head_left()
    names = same_groups(plan, between)
    assert names is not None
    assert names[FIRST_HEADS] == f"{FIRST_HEADS}:2"
    assert f"{FIRST_HEADS}:1" not in names.values()
    then = plan_of(between, {FIRST_HEADS: np.array([0, 5, 11])})
    both = plan_of_both(couplings, plan, then, names)
    kept = both.kept_channels
    assert (kept[f"{FIRST_HEADS}:1"].tolist(), kept[f"{FIRST_HEADS}:2"].tolist()) == ([2], [3, 8, 14])
    assert same(rewrite(couplings, both), rewrite(between, then))


def test_groups_of_another_model_are_not_known() -> None:
    """Where one cannot be told, none is."""
    assert same_groups(at_random(three_layers(), 0, 0.3), bundled("resnet_dynamo")) is None


@pytest.mark.parametrize("rows", [4, 3])
def test_groups_merged_into_one_axis_are_told_apart_by_width(rows: int) -> None:
    """Heads and their numbers both slice the same weight; as long as their names stay, or their widths differ."""
    couplings = couple(read(build(ATTENTION)))
    heads, numbers = couplings.groups if couplings.groups[0].size == 3 else couplings.groups[::-1]
    plan = plan_of(couplings, {heads.name: np.array([0, 2]), numbers.name: np.arange(rows - 2)})
    names = same_groups(plan, smaller(couplings, plan))
    assert names is not None
    assert set(names.values()) <= {heads.name, numbers.name}
    assert names.get(heads.name, heads.name) == heads.name


# Rounds of `prune`


@cache
def in_rounds(name: str, macs: float, rounds: int) -> PruneResult:
    """Pruned on some digits."""
    options = {"criterion": "obs", "probe_samples": 4, "jobs": 1}
    return prune(model_path(name), digits(name, 64), macs=macs, params=0.8, rounds=rounds, **options)


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("mlp_torch", 0.3),
        ("mlp_sklearn", 0.1),
        pytest.param("resnet_dynamo", 0.3, marks=pytest.mark.slow),
        pytest.param("gru_torch", 0.3, marks=pytest.mark.slow),
        pytest.param("vit_torchscript", 0.3, marks=pytest.mark.slow),
    ],
)
def test_rounds_end_within_every_bound(name: str, macs: float) -> None:
    """Verified like any other, and by a plan that a user may apply to the original."""
    result = in_rounds(name, macs, 2)
    report = result.report
    assert report.verdict.passed
    assert report.pruned.macs <= macs * report.original.macs
    assert report.pruned.params <= 0.8 * report.original.params
    assert report.settings["rounds"] == 2
    couplings = bundled(name)
    assert verify(couplings, result.plan, result.model, gather(couplings.graph, digits(name, 16))).passed


def test_rounds_keep_to_limits() -> None:
    """Groups that are left out stay whole, widths keep to multiples, in the last round as in the first."""
    name = "mlp_sklearn"
    limits = {"only": "MatMul", "multiple_of": 5, "min_channels": 8}
    for rounds in (1, 2, 3):
        options = {"criterion": "obs", "rounds": rounds, "jobs": 1, "probe_samples": 4}
        plan = prune(model_path(name), digits(name, 64), macs=0.3, **options, **limits).plan
        assert [len(group.kept) for group in plan.groups] == [15, 32]


def test_rounds_refuse_what_cannot_be_reached_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bound is looked at first."""
    monkeypatch.setattr("onnxprune.pruner.repair", lambda *given, **options: pytest.fail("layers were refitted"))
    with pytest.raises(TargetError, match="the least reachable is"):
        prune(model_path("mlp_sklearn"), digits("mlp_sklearn", 64), macs=0.001, criterion="obs", rounds=3, jobs=1)


def test_rounds_score_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the smaller model, which has as many channels as were left."""
    sizes: list[int] = []

    def observed(evidence: Evidence, groups: Sequence[Group], rank: Rank = CRITERIA["obs"]) -> Ranking:
        sizes.append(sum(group.size for group in groups))
        return rank(evidence, groups)

    monkeypatch.setitem(CRITERIA, "obs", observed)
    arrays = digits("mlp_sklearn", 64)
    prune(model_path("mlp_sklearn"), arrays, macs=0.1, criterion="obs", rounds=3, probe_samples=4, jobs=1)
    assert len(sizes) == 3
    assert sizes[0] == 96 > sizes[1] > sizes[2]


@pytest.mark.parametrize(("name", "macs"), [("mlp_torch", 0.3), ("mlp_sklearn", 0.1)])
def test_rounds_lose_no_more_than_one(name: str, macs: float) -> None:
    """By the distance from the original's answers on the samples that they are pruned with."""
    calibration = gather(bundled(name).graph, digits(name, 64))
    distance = prepare_loss(bundled(name).graph, calibration)
    once, often = (
        loss_of(bundled(name), calibration, distance, model=in_rounds(name, macs, rounds).model) for rounds in (1, 2)
    )
    assert often <= once * (1 + 1e-6)


@pytest.mark.parametrize("macs", [0.5, 0.3, 0.1])
def test_rounds_reach_their_end_where_one_head_is_left(macs: float) -> None:
    """By whatever way, and also where numbers and heads are down to one each."""
    data = np.random.default_rng(0).standard_normal((60, 7, 5)).astype(np.float32)
    result = prune(build(ATTENTION), data, macs=macs, rounds=3, jobs=1)
    assert result.report.verdict.passed
    assert result.report.pruned.macs <= macs * result.report.original.macs
    heads = next(group for group in result.plan.groups if group.size == 3)
    assert macs > 0.1 or len(heads.kept) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_torchscript", "vit_dynamo"])
def test_transformers_reach_their_end_where_one_head_is_left(name: str) -> None:
    """At a tenth of the MACs."""
    result = prune(model_path(name), digits(name, 48), macs=0.1, rounds=3, probe_samples=2)
    assert any(len(group.kept) == 1 for group in result.plan.groups if group.size == 4)
    assert result.report.verdict.passed
    assert result.report.pruned.macs <= 0.1 * result.report.original.macs
