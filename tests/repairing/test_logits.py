"""Refitting layers whose outputs are multiplied with each other: queries and keys."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import onnxprune
from onnxprune.choosing.plan import Plan, plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.repairing import products
from onnxprune.repairing.logits import logits_steps
from onnxprune.repairing.mixes import Meeting, best_mixes, error_now, error_of
from onnxprune.repairing.repair import repair
from onnxprune.repairing.steps import Refit
from onnxprune.rewriting.rewrite import rewrite
from tests.models import build
from tests.oracle import assert_same_interface, assert_valid

Q = "q = MatMul(x[N,6,10], wq[10,16])\n qb = Add(q, bq[16])\n"
K = "k = MatMul(x, wk[10,16])\n kb = Add(k, bk[16])\n"
Q_HEADS = "qr = Reshape(qb, s1{0,0,2,8})\n qh = Transpose<perm=[0,2,1,3]>(qr)\n"
K_HEADS = "kr = Reshape(kb, s2{0,0,2,8})\n kh = Transpose<perm=[0,2,3,1]>(kr)\n"
PRODUCT = "y = MatMul(qh, kh)"

ATTENTION = {
    "separate": Q + K + Q_HEADS + K_HEADS + PRODUCT,
    "no biases": Q.replace("Add(q, bq[16])", "Identity(q)") + K + Q_HEADS + K_HEADS + PRODUCT,
    "one number added to all": Q.replace("bq[16]", "bq[1]") + K + Q_HEADS + K_HEADS + PRODUCT,
    "scaled": Q + K + Q_HEADS + K_HEADS + "qs = Mul(qh, c{0.5})\n ks = Div(kh, d{3.0})\n y = MatMul(qs, ks)",
    "packed": """
        a = MatMul(x[N,6,10], wa[10,32])
        ab = Add(a, ba[32])
        ar = Reshape(ab, s{0,0,2,2,8})
        at = Transpose<perm=[2,0,3,1,4]>(ar)
        qh = Gather<axis=0>(at, i{0}[])
        k1 = Gather<axis=0>(at, j{1}[])
        kh = Transpose<perm=[0,1,3,2]>(k1)
    """.replace("i{0}[]", "i[]{0}").replace("j{1}[]", "j[]{1}")
    + PRODUCT,
    "keys of all heads": Q
    + Q_HEADS
    + "k = MatMul(x, wk[10,8])\n kb = Add(k, bk[8])\n kr = Reshape(kb, s2{0,0,1,8})\n"
    + "kh = Transpose<perm=[0,2,3,1]>(kr)\n"
    + PRODUCT,
    "keys of two heads each": """
        q = Gemm(x[6,10], wq[10,32], bq[32])
        qr = Reshape(q, s1{6,4,8})
        qh = Transpose<perm=[1,0,2]>(qr)
        k = Gemm(x, wk[10,16], bk[16])
        kr = Reshape(k, s2{6,2,1,8})
        ke = Expand(kr, s3{6,2,2,8})
        kf = Reshape(ke, s4{6,4,8})
        kh = Transpose<perm=[1,2,0]>(kf)
    """
    + PRODUCT,
    "convolutions": """
        q = Conv(x[N,10,2,3], wq[16,10,1,1], bq[16])
        k = Conv(x, wk[16,10,1,1], bk[16])
        qr = Reshape(q, s1{0,2,8,6})
        qh = Transpose<perm=[0,1,3,2]>(qr)
        kh = Reshape(k, s2{0,2,8,6})
    """
    + PRODUCT,
    "one head": Q + K + "kt = Transpose<perm=[0,2,1]>(kb)\n y = MatMul(qb, kt)",
}

LEFT_ALONE = {
    "turned by position": Q
    + K
    + """
        q1 = Slice(qb, f1{0}, t1{8}, e1{2})
        q2 = Slice(qb, f2{8}, t2{16}, e2{2})
        m1 = Mul(q1, co[6,8])
        m2 = Mul(q2, si[6,8])
        ro = Sub(m1, m2)
        m3 = Mul(q1, si)
        m4 = Mul(q2, co)
        rp = Add(m3, m4)
        qt = Concat<axis=2>(ro, rp)
        kt = Transpose<perm=[0,2,1]>(kb)
        y = MatMul(qt, kt)
    """,
    "scaled by position": Q + K + "qt = Mul(qb, co[6,1])\n kt = Transpose<perm=[0,2,1]>(kb)\n y = MatMul(qt, kt)",
    "bent": Q + K + "qt = Tanh(qb)\n kt = Transpose<perm=[0,2,1]>(kb)\n y = MatMul(qt, kt)",
    "read elsewhere": Q + K + Q_HEADS + K_HEADS + PRODUCT + "\n y2 = MatMul(kb, wz[16,3])",
    "times itself": Q + Q_HEADS + "kh = Transpose<perm=[0,2,3,1]>(qr)\n" + PRODUCT,
}

REST = """
    so = Softmax(l)
    v = MatMul(x, wv[10,16])
    vr = Reshape(v, s5{0,0,2,8})
    vh = Transpose<perm=[0,2,1,3]>(vr)
    o = MatMul(so, vh)
    ot = Transpose<perm=[0,2,1,3]>(o)
    oo = Reshape(ot, s6{0,0,16})
    y = MatMul(oo, wo[16,5])
"""


def samples_of(couplings: Couplings, seed: int = 0) -> Calibration:
    """Random inputs; whole feeds where the model has no batch."""
    shape = couplings.graph.input_shapes["x"]
    size = (60, *shape) if len(shape) == 2 else (60, *shape[1:])
    return gather(couplings.graph, {"x": np.random.default_rng(seed).standard_normal(size).astype(np.float32)})


def with_repeats(model: ModelProto) -> ModelProto:
    """The model with queries whose last four channels of each head are mixes of the first four."""
    mix = np.random.default_rng(3).standard_normal((4, 4)) / 2
    for tensor in model.graph.initializer:
        if tensor.name in ("wq", "bq", "wa", "ba") and max(tensor.dims) > 10:
            array = np.array(numpy_helper.to_array(tensor))
            along = int(np.argmax(array.shape))
            queries = np.moveaxis(array, along, -1)
            half = slice(None, 16) if tensor.name in ("wa", "ba") else slice(None)
            heads = queries[..., half].reshape(*queries.shape[:-1], -1, 8)
            heads[..., 4:] = heads[..., :4] @ mix
            queries[..., half] = heads.reshape(queries[..., half].shape)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return model


def half_of_the_width(couplings: Couplings) -> Plan:
    """Half of the channels that queries and keys share go."""
    (step,) = logits_steps(couplings)
    return plan_of(couplings, {g.name: np.arange(g.size // 2) for g in couplings.groups if step.reads & {*g.dims}})


def taken(couplings: Couplings, plan: Plan) -> tuple[tuple[Refit, ...], ModelProto]:
    """What the step makes of the pruned model, and the model."""
    (step,) = logits_steps(couplings)
    model = rewrite(couplings, plan)
    return tuple(step.refit(model, plan.kept(couplings), samples_of(couplings), 1)), model


def outputs(model: ModelProto, samples: Calibration) -> np.ndarray:
    """The first output on all samples."""
    session = session_for(model)
    feeds = (samples.at(samples.filled(batch)) for batch in samples.batches(60))
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def error(model: ModelProto, couplings: Couplings, samples: Calibration) -> float:
    """Squared error over energy."""
    wanted = outputs(couplings.graph.model, samples)
    return float(np.square(outputs(model, samples) - wanted).sum() / np.square(wanted).sum())


@pytest.mark.parametrize("kind", [kind for kind in ATTENTION if kind != "one number added to all"])
def test_channels_that_others_can_stand_in_for_go_for_nothing(kind: str) -> None:
    """Queries of rank four need no more than four channels: the logits stay, on samples never seen."""
    couplings = couple(read(with_repeats(build(ATTENTION[kind]))))
    plan = half_of_the_width(couplings)
    (refit,), model = taken(couplings, plan)
    assert refit.layer.before > 1e-2
    assert np.sqrt(refit.layer.after) < 1e-4
    fresh = samples_of(couplings, seed=1)
    assert np.sqrt(error(model, couplings, fresh)) < 1e-4


@pytest.mark.parametrize("kind", ATTENTION)
def test_logits_come_closer_on_samples_never_seen(kind: str) -> None:
    """Half of the width goes that all of it was needed for."""
    couplings = couple(read(build(ATTENTION[kind])))
    plan = half_of_the_width(couplings)
    (refit,), model = taken(couplings, plan)
    fresh = samples_of(couplings, seed=1)
    assert refit.layer.after < 0.9 * refit.layer.before
    assert error(model, couplings, fresh) < 0.9 * error(rewrite(couplings, plan), couplings, fresh)
    assert_valid(couplings.graph.model, model)
    assert_same_interface(couplings.graph.model, model)


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_what_is_no_plain_product_of_columns_stays_as_it_is(kind: str) -> None:
    """Rotation by position, anything that bends, and columns that others read too."""
    couplings = couple(read(build(LEFT_ALONE[kind])))
    (step,) = logits_steps(couplings)
    kept = {dim: np.arange(dim.size // 2) for dim in step.reads}
    assert not tuple(step.refit(couplings.graph.model, kept, samples_of(couplings), 1))


def test_a_width_that_is_whole_needs_nothing() -> None:
    """The step has nothing to say where all terms of the sums are left."""
    couplings = couple(read(build(ATTENTION["separate"])))
    (step,) = logits_steps(couplings)
    assert not tuple(step.refit(couplings.graph.model, {}, samples_of(couplings), 1))


def test_heads_that_went_are_no_longer_there_to_be_fitted() -> None:
    """Heads and channels of the others go together."""
    text = ATTENTION["separate"].replace("y = MatMul(qh, kh)", "l = MatMul(qh, kh)") + REST
    couplings = couple(read(build(text)))
    plan = plan_of(couplings, {group.name: np.arange(group.size // 2) for group in couplings.groups})
    (refit,), _ = taken(couplings, plan)
    assert set(refit.constants) == {"wq", "bq", "wk", "bk"}
    assert refit.layer.after < 0.9 * refit.layer.before


def test_the_model_loses_less_when_logits_are_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers behind are refitted to what the repaired logits let through; few matrices are kept in memory."""
    monkeypatch.setattr(products, "MOST_NUMBERS", 20_000)
    text = ATTENTION["separate"].replace("y = MatMul(qh, kh)", "l = MatMul(qh, kh)") + REST
    couplings = couple(read(build(text)))
    plan = half_of_the_width(couplings)
    samples, fresh = samples_of(couplings), samples_of(couplings, seed=1)
    repaired = repair(couplings, plan, rewrite(couplings, plan), samples).model
    assert error(repaired, couplings, fresh) < 0.7 * error(rewrite(couplings, plan), couplings, fresh)


def test_a_whole_run_passes_its_check() -> None:
    """Only the constants that the plan names differ from the plain slices."""
    text = ATTENTION["packed"].replace("y = MatMul(qh, kh)", "l = MatMul(qh, kh)") + REST
    model = build(text)
    data = {"x": np.random.default_rng(0).standard_normal((60, 6, 10)).astype(np.float32)}
    result = onnxprune.prune(model, data, ratio=0.5, criterion="magnitude")
    assert {"wa", "ba"} <= set(result.plan.refitted)
    assert result.report.verdict.passed


def test_mixes_that_fit_no_better_are_refused() -> None:
    """What was seen is noise: samples held out say so."""
    random = np.random.default_rng(0)

    def seen(count: int) -> list[Meeting]:
        known, wanted = ([random.standard_normal((count, 3, 8)) for _ in range(2)] for _ in range(2))
        made = [1e-3 * one[..., :4] for one in wanted]
        return [Meeting.of((0, 0), (known[0], known[1]), (wanted[0], wanted[1]), (made[0], made[1]))]

    start = ((np.eye(8)[:, :4],), (np.eye(8)[:, :4],))
    fitted, held_out = seen(6), seen(400)
    mixes, penalty = best_mixes(fitted, held_out, start, (True, True))
    assert penalty is None
    assert mixes is start
    assert error_now(held_out) < error_of(start, held_out)
