"""What a run does besides reaching a bound: drops, weights, eight bits, sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import beginning
from onnxprune.beginning import begin
from onnxprune.choosing.plan import Plan
from onnxprune.coupling.couple import couple
from onnxprune.errors import DataError, TargetError, UsageError
from onnxprune.job import PruneResult
from onnxprune.judging.judgement import Judge, judge_held_out
from onnxprune.options import Options
from onnxprune.ordering.criteria import CRITERIA
from onnxprune.pipeline import prune, sweep
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.reporting.sweeping import point_of
from onnxprune.sparsifying.checking import NAME as ZEROS_CHECK
from onnxprune.verifying.verify import verify
from tests.bundled import FIXTURES, bundled, digits, model_path
from tests.models import build

MLP = model_path("mlp_torch")
QUICK: dict[str, Any] = {"criterion": "obs", "allocation": "uniform"}
"""No probes."""


@cache
def data() -> dict[str, np.ndarray]:
    """All digits to calibrate with, a thousand."""
    return digits("mlp_torch", 1000)


@cache
def other_digits() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "digits" / "test.npz") as archive:
        return {name: archive[name] for name in archive.files}


def answers(model: ModelProto | Path, samples: np.ndarray) -> np.ndarray:
    """The digits that the model reads."""
    loaded = onnx.load(model) if isinstance(model, Path) else model
    return np.asarray(session_for(loaded).run(None, {"x": samples})[0].argmax(1))


def floats(model: ModelProto) -> dict[str, np.ndarray]:
    """Every initializer of floats."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> list[Judge]:
    """Those who held samples back."""
    found: list[Judge] = []

    def observed(*given: Any, **options: Any) -> Judge:
        found.append(judge_held_out(*given, **options))
        return found[-1]

    monkeypatch.setattr(beginning, "judge_held_out", observed)
    return found


# As far as a drop allows


@cache
def dropped(*, said: bool = True) -> PruneResult:
    return prune(MLP, data(), **QUICK, **({"max_drop": "1%"} if said else {}))


def test_a_drop_alone_prunes_as_far_as_it_allows() -> None:
    """The model is smaller, shown to lose no more, and every model on the way is told."""
    report = dropped().report
    assert report.judgement is not None
    assert report.judgement.within_limit
    assert report.judgement.drop.upper <= 0.01
    assert report.pruned.macs < report.original.macs
    accepted = [trial.share for trial in report.judgement.trials if trial.accepted]
    assert report.pruned.macs <= min(accepted) * report.original.macs
    assert (report.judgement.metric, report.judgement.held_out) == ("accuracy", True)
    assert report.verdict.passed


def test_the_judge_has_samples_that_pruning_does_not_see(judges: list[Judge]) -> None:
    """Of a thousand, each is on one side; the figures are those of ONNX Runtime on his side."""
    result = prune(MLP, data(), max_drop="1%", **QUICK)
    (judge,) = judges
    sides = [{image.tobytes() for image in side.arrays["x"]} for side in (judge.pruning, judge.judging)]
    assert sides[0].isdisjoint(sides[1])
    assert len(judge.pruning) + len(judge.judging) == 1000
    assert sides[0] | sides[1] == {image.tobytes() for image in data()["x"]}
    judgement = result.report.judgement
    assert judgement is not None
    assert judgement.samples == len(judge.judging)
    images, right = judge.judging.arrays["x"], judge.judging.labels
    found = [(answers(model, images) == right).mean() for model in (MLP, result.model)]
    assert [judgement.original, judgement.pruned] == pytest.approx(found)
    assert judgement.drop.mean == pytest.approx(found[0] - found[1])
    own = (answers(MLP, judge.pruning.arrays["x"]) == judge.pruning.labels).mean()
    assert result.report.original.accuracy == pytest.approx(own)


def test_nothing_of_the_judges_samples_decides(judges: list[Judge]) -> None:
    """With all images on his side blackened, the same model comes out, and another judgement."""
    options = {"macs": "50%", "max_drop": "99%", **QUICK}
    first = prune(MLP, data(), **options)
    his = {image.tobytes() for image in judges[0].judging.arrays["x"]}
    black = np.array([image * (image.tobytes() not in his) for image in data()["x"]], np.float32)
    second = prune(MLP, {"x": black, "labels": data()["labels"]}, **options)
    assert second.model == first.model
    assert second.report.judgement != first.report.judgement


def test_data_without_a_target_mean_one_per_cent() -> None:
    """As if it had been said."""
    unsaid = dropped(said=False)
    assert unsaid.model == dropped().model
    assert unsaid.report.settings["max drop"] == 0.01
    assert unsaid.report.settings["confidence"] == 0.95


def test_a_larger_drop_allows_a_smaller_model() -> None:
    """And the limit is that one."""
    more = prune(MLP, data(), max_drop="5%", **QUICK)
    assert more.report.judgement is not None
    assert more.report.judgement.limit == 0.05
    assert more.report.judgement.drop.upper <= 0.05
    assert more.report.pruned.macs < dropped().report.pruned.macs


def test_with_eval_data_all_data_are_for_pruning() -> None:
    """And all of those are judged on."""
    job = begin(MLP, data(), Options(max_drop="1%", eval_data=other_digits(), **QUICK), None)
    assert len(job.session.calibration) == 1000
    judgement = job.result().report.judgement
    assert judgement is not None
    assert (judgement.samples, judgement.held_out) == (2000, False)
    right = (answers(MLP, other_digits()["x"]) == other_digits()["labels"]).mean()
    assert judgement.original == pytest.approx(right)


def test_eval_data_are_judged_on_beside_a_bound() -> None:
    """Nothing is searched, nothing refused: the judgement is told."""
    result = prune(MLP, digits("mlp_torch", 100), macs="2%", eval_data=other_digits(), **QUICK)
    judgement = result.report.judgement
    assert judgement is not None
    assert not judgement.within_limit
    assert judgement.trials == ()
    assert result.report.pruned.macs <= 0.02 * result.report.original.macs


def test_a_bound_that_loses_too_much_is_refused() -> None:
    """With what was found, and what to do; one that does not is pruned to."""
    with pytest.raises(TargetError, match=r"a drop of at most 0\.01 .* in accuracy, found a drop of .* Prune less, "):
        prune(MLP, data(), macs="2%", max_drop="1%", **QUICK)
    report = prune(MLP, data(), macs="90%", max_drop="1%", **QUICK).report
    assert report.judgement is not None
    assert report.judgement.within_limit
    assert 0.88 < report.pruned.macs / report.original.macs <= 0.9


@pytest.mark.parametrize(
    ("options", "count"), [({"max_drop": "1%"}, 500), ({"eval_data": digits("mlp_torch", 100)}, 1000)]
)
def test_too_few_samples_for_what_was_asked_are_refused(options: dict[str, Any], count: int) -> None:
    """Where it was asked in so many words."""
    with pytest.raises(DataError, match="Expected at least "):
        prune(MLP, digits("mlp_torch", count), **options, **QUICK)


def test_too_few_samples_are_noted_where_nothing_was_asked() -> None:
    """Then the bound is the usual one, and all samples are for pruning."""
    job = begin(MLP, digits("mlp_torch", 100), Options(**QUICK), None)
    assert (job.judge, job.searches, len(job.session.calibration)) == (None, False, 100)
    assert any(note.startswith("No target was given: the target is 70% of the MACs") for note in job.notes)
    report = job.result().report
    assert 0.65 < report.pruned.macs / report.original.macs <= 0.7


def test_made_up_inputs_judge_nothing() -> None:
    """A drop on them means nothing."""
    with pytest.raises(DataError, match="on made-up inputs a drop means nothing"):
        prune(MLP, max_drop="1%")


def test_no_drop_that_is_small_enough_is_an_error() -> None:
    """With what was tried."""
    with pytest.raises(TargetError, match=r"found none among those that were judged:\n  - 9"):
        prune(MLP, data(), max_drop="2%", confidence="99.9%", metric=lambda outputs, labels: noisy(outputs), **QUICK)


def noisy(outputs: Any) -> np.ndarray:
    """A metric that anything but the original's own numbers loses on."""
    numbers = np.asarray(next(value for value in outputs.values() if value.dtype.kind == "f"), np.float64)
    return np.asarray(np.sin(1e7 * numbers.sum(1) + 1e7 * numbers[:, 0]))


def test_a_metric_is_a_function_or_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both judge alike, each sample by itself."""
    monkeypatch.chdir(tmp_path)
    code = "def kept(outputs, labels):\n    return outputs['probabilities'][range(len(labels)), labels]\n"
    Path("a_metric_of_mine.py").write_text(code)

    def kept(outputs: Any, labels: Any) -> Any:
        return outputs["probabilities"][range(len(labels)), labels]

    named, given = (
        prune(MLP, data(), macs="50%", max_drop="10%", metric=metric, **QUICK).report.judgement
        for metric in ("a_metric_of_mine:kept", kept)
    )
    assert named is not None
    assert given is not None
    assert (named.original, named.pruned, named.drop) == (given.original, given.pruned, given.drop)
    assert named.metric == "a_metric_of_mine:kept"


# Weights


@cache
def with_weights(**options: Any) -> PruneResult:
    return prune(MLP, digits("mlp_torch", 100), **{**QUICK, **options})


def zeros(model: ModelProto) -> int:
    return sum(int((array == 0).sum()) for name, array in floats(model).items() if name.endswith("weight"))


def test_weights_alone_remove_no_channels() -> None:
    """As many zeros as were asked for, all counted, and nothing else is smaller."""
    result = with_weights(weights="60%")
    weights = result.report.weights
    assert weights is not None
    assert result.plan.removed == 0
    assert result.report.pruned.params == result.report.original.params
    assert weights.size == sum(array.size for name, array in floats(result.model).items() if name.endswith("weight"))
    assert weights.zeros == zeros(result.model) >= 0.6 * weights.size
    assert sum(layer.zeros for layer in weights.layers) == pytest.approx(0.6 * weights.size, abs=1)
    assert weights.figures.accuracy is not None
    assert weights.figures.accuracy > 0.9


@pytest.mark.parametrize("options", [{"weights": "60%"}, {"weights": "60%", "macs": "50%"}, {"weights": "2:4"}])
def test_zeros_are_in_the_verdict_and_in_the_plan(options: dict[str, Any], tmp_path: Path) -> None:
    """The run's own check says so, and `verify` passes with the plan as a user has it."""
    result = with_weights(**options)
    assert ZEROS_CHECK in [check.name for check in result.report.verdict.checks if check.passed]
    couplings = bundled("mlp_torch")
    result.plan.save(tmp_path / "plan.json")
    plan = Plan.load(tmp_path / "plan.json")
    assert "hidden.weight" in plan.refitted
    assert verify(couplings, plan, result.model, digits("mlp_torch", 32)).passed


@pytest.mark.parametrize(("params", "weights"), [("50%", "50%"), ("30%", "50%"), ("20%", "80%"), (40_000, "30%")])
def test_a_bound_on_parameters_counts_what_is_not_zero(params: str | int, weights: str) -> None:
    """Channels and single weights share it; both go."""
    result = with_weights(params=params, weights=weights, criterion="magnitude")
    whole = sum(array.size for array in floats(onnx.load(MLP)).values())
    bound = params if isinstance(params, int) else whole * float(params[:-1]) / 100
    left = sum(int(np.count_nonzero(array)) for array in floats(result.model).values())
    assert 0.98 * bound < left <= bound
    assert 0 < len(result.plan.groups[0].kept) < 128
    assert zeros(result.model) > 0
    assert result.report.verdict.passed


def test_two_of_four_stay() -> None:
    """Along what a layer sums over."""
    weight = floats(with_weights(weights="2:4").model)["hidden.weight"]
    assert np.count_nonzero(weight.reshape(len(weight), -1, 4), axis=2).max() == 2


def test_a_sparse_file_is_the_dense_model_in_fewer_bytes(tmp_path: Path) -> None:
    """It loads, and computes the same bit for bit."""
    dense, sparse = (with_weights(weights="90%", sparse=form, criterion="magnitude") for form in (False, True))
    sparse.save(tmp_path / "sparse.onnx")
    images = digits("mlp_torch", 50)["x"]
    models = dense.model, onnx.load(tmp_path / "sparse.onnx")
    outputs = [session_for(model).run(None, {"x": images})[0] for model in models]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert dense.report.weights is not None
    assert (tmp_path / "sparse.onnx").stat().st_size == dense.report.weights.bytes_sparse < 0.7 * dense.model.ByteSize()


def test_weights_may_be_refused_for_what_they_lose() -> None:
    """A drop is judged of the model as it is shipped."""
    with pytest.raises(TargetError, match="in accuracy, found a drop of"):
        prune(MLP, data(), weights="99.5%", max_drop="1%", criterion="magnitude")
    judgement = prune(MLP, data(), weights="30%", max_drop="2%", criterion="magnitude").report.judgement
    assert judgement is not None
    assert judgement.within_limit


def test_without_data_weights_go_by_size() -> None:
    """What layers read is not known: no weight that stays has a new number, and the smallest go."""
    result = prune(MLP, weights="50%")
    for name, before in floats(onnx.load(MLP)).items():
        after = floats(result.model)[name]
        assert ((after == before) | (after == 0)).all()
    assert zeros(result.model) >= 0.5 * sum(
        array.size for name, array in floats(result.model).items() if name.endswith("weight")
    )


def test_more_zeros_than_there_are_weights_are_refused() -> None:
    """Biases stay, so nobody can have next to nothing."""
    with pytest.raises(TargetError):
        with_weights(params=20, weights="50%")


# Eight bits


def test_eight_bits_are_reported_beside_the_floats() -> None:
    """What they cost, what they save; the file holds eight-bit weights."""
    result = prune(MLP, digits("mlp_torch", 200), macs="60%", quantize="int8", **QUICK)
    report = result.report
    assert report.quantized is not None
    assert report.quantized.figures.bytes == result.model.ByteSize() < 0.4 * report.pruned.bytes
    found = answers(result.model, digits("mlp_torch", 200)["x"]) == digits("mlp_torch", 200)["labels"]
    assert report.quantized.figures.accuracy == pytest.approx(found.mean())
    assert report.quantized.figures.params == report.pruned.params
    assert report.quantized.distance > 0
    assert any(tensor.data_type == onnx.TensorProto.INT8 for tensor in result.model.graph.initializer)
    assert report.settings["quantize"] == "int8"
    assert len(report.verdict.checks) > len(prune(MLP, macs="60%", criterion="random").report.verdict.checks)


def test_a_drop_is_that_of_the_eight_bits(judges: list[Judge]) -> None:
    """The model that is judged is the one that is shipped."""
    result = prune(MLP, data(), macs="60%", max_drop="5%", quantize="int8", **QUICK)
    right = judges[0].judging.labels
    assert result.report.judgement is not None
    assert result.report.judgement.pruned == (answers(result.model, judges[0].judging.arrays["x"]) == right).mean()


# Sweeps


BOUNDS = ("90%", "60%", "45%")


@pytest.fixture
def scorings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the criteria that were asked, each time."""
    asked: list[str] = []
    for name, rank in CRITERIA.items():

        def observed(*given: Any, name: str = name, rank: Any = rank) -> Any:
            asked.append(name)
            return rank(*given)

        monkeypatch.setitem(CRITERIA, name, observed)
    return asked


@pytest.mark.parametrize(
    "options",
    [{"criterion": "magnitude"}, {"probe_samples": 4, "jobs": 1}, {"criterion": "magnitude", "weights": "20%"}],
    ids=["magnitude", "auto", "weights"],
)
def test_a_sweep_measures_once(options: dict[str, Any], scorings: list[str]) -> None:
    """And makes of each bound the model that `prune` makes of it."""
    arrays = digits("mlp_sklearn", 64)
    results = sweep(model_path("mlp_sklearn"), arrays, macs=BOUNDS, **options)
    assert len(scorings) == len(set(scorings)) == (2 if "criterion" not in options else 1)
    assert len(results) == len(BOUNDS)
    for bound, result in zip(BOUNDS, results, strict=True):
        alone = prune(model_path("mlp_sklearn"), arrays, macs=bound, **options)
        assert result.plan == alone.plan
        assert result.model == alone.model
        assert result.report.settings == alone.report.settings
        assert result.report.notes == alone.report.notes


def test_a_sweep_may_be_judged() -> None:
    """Each of its models on the same samples; the drop does not fall."""
    results = sweep(MLP, data(), macs=("80%", "3%"), eval_data=other_digits(), **QUICK)
    drops = [result.report.judgement.drop.mean for result in results if result.report.judgement]
    assert len(drops) == 2
    assert drops[0] < drops[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": ("50%", "half")}, "Expected for macs a share up to 100%"),
        ({"macs": ()}, r"Expected bounds to sweep over, found none\. Give some: --macs 70%,50%,30%\."),
        ({"max_drop": "1%"}, r"Expected options among confidence, .*, found 'max_drop'"),
        ({"size": "50%"}, "found 'size'"),
        ({"colour": "red"}, "found 'colour'"),
    ],
)
def test_a_sweep_refuses_what_means_nothing_in_it(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far to prune is what it sweeps over; before any work."""
    monkeypatch.setattr("onnxprune.pipeline.begin", lambda *given: pytest.fail("work was done"))
    with pytest.raises(UsageError, match=message):
        sweep(MLP, **options)


def test_a_sweep_ends_at_a_bound_that_cannot_be_reached() -> None:
    """Whole, or not at all."""
    with pytest.raises(TargetError, match="the least reachable is"):
        sweep(MLP, macs=("50%", "0.1%"), criterion="random")


# What is asked for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "Expected rounds of 1 or more, found 0."),
        ({"quantize": "int4"}, "Expected quantize to be int8, found 'int4'."),
        ({"sparse": True}, "Expected weights to store sparsely, found none removed."),
        ({"sparse": True, "weights": "50%", "quantize": "int8"}, "Expected sparse tensors or eight bits, found both."),
        ({"weights": "100%"}, "Expected for weights a share from 0% to below 100%"),
        ({"weights": "4:4"}, "Expected for weights a share from 0% to below 100%"),
        ({"max_drop": 0}, "Expected for max-drop a share above 0% and below 100%"),
        ({"max_drop": "1%", "confidence": 0.5}, "Expected for confidence a share above 50% and below 100%"),
        ({"max_drop": "1%", "metric": "charm"}, "Expected a metric among "),
        ({"allocation": "fair", "macs": 0.5}, "Expected an allocation among curves, global, uniform, found 'fair'."),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    """Before any work, in the words of the command line."""
    with pytest.raises(UsageError) as refusal:
        prune(MLP, data(), **options)
    assert str(refusal.value).startswith(message)


def test_a_pruned_model_can_be_pruned_again() -> None:
    """What comes out is a model like any other, also with weights gone."""
    once = with_weights(macs="60%", weights="50%")
    again = prune(once.model, digits("mlp_torch", 200), macs="50%", **QUICK)
    assert couple(read(again.model)).groups[0].size < len(once.plan.groups[0].kept)


def kept(results: Sequence[PruneResult]) -> list[int]:
    """Channels of the hidden layer."""
    return [len(result.plan.groups[0].kept) for result in results]


def test_bounds_of_a_sweep_come_in_any_order() -> None:
    """Each has its own model."""
    assert kept(sweep(MLP, macs=("50%", "90%", "70%"), criterion="random")) == [64, 115, 89]


def test_weights_alone_are_not_nothing() -> None:
    """A model that lost weights lost something."""
    assert with_weights(weights="50%", criterion="magnitude").report.notes == ()


def test_points_count_the_bytes_of_the_file() -> None:
    """With sparse tensors too."""
    (one,) = sweep(MLP, digits("mlp_torch", 64), macs=("60%",), criterion="magnitude", weights="90%", sparse=True)
    assert point_of("60%", one.report).bytes == one.model.ByteSize()


def test_rounds_need_no_loss() -> None:
    """A model that only gives class numbers is pruned in rounds by what its layers lose."""
    model = build("a = MatMul(x[N,4], w1[4,8])\n b = Relu(a)\n c = MatMul(b, w2[8,3])\n y = ArgMax<axis=1>(c)")
    data = {"x": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)}
    report = prune(model, data, macs="50%", criterion="obs", rounds=2).report
    assert report.verdict.passed
    assert report.pruned.macs <= 0.5 * report.original.macs
