"""The whole pipeline, from Python."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune
from onnxprune import OnnxPruneError, Plan, PruneResult, apply, prune
from onnxprune.comparing import compare
from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.reading.observing import session_for
from tests.bundled import CLASSIFIERS, MODELS, digits, model_path, twins_later
from tests.models import build

SAMPLES = 32


def pruned(name: str = "mlp_torch", **options: object) -> PruneResult:
    """A bundled model, pruned on a few digits."""
    return prune(model_path(name), digits(name, SAMPLES), **options)


@pytest.mark.parametrize("name", twins_later(MODELS, and_also=("gru_torch",)))
def test_every_bundled_model_is_pruned_to_60_percent_of_its_macs(name: str) -> None:
    """The result passes its verification, is smaller, and computes something close to the original."""
    result = pruned(name, macs="60%", probe_samples=8)
    report = result.report
    assert report.verdict.passed
    assert report.verdict.difference < 1e-5
    assert report.pruned.macs <= 0.6 * report.original.macs
    assert report.pruned.params < report.original.params
    assert report.pruned.bytes == result.model.ByteSize() < report.original.bytes
    assert 0 < report.distance < 1
    onnx.checker.check_model(result.model, full_check=True)


@pytest.mark.parametrize("name", twins_later(CLASSIFIERS, and_also=("gru_torch", "resnet_torchscript", "lstm_keras")))
def test_accuracy_is_that_of_the_models(name: str) -> None:
    """The reported accuracies are what ONNX Runtime's outputs say."""
    result, arrays = pruned(name, macs="80%", criterion="magnitude"), digits(name, SAMPLES)
    for model, told in ((onnx.load(model_path(name)), result.report.original), (result.model, result.report.pruned)):
        outputs = session_for(model).run(None, {model.graph.input[0].name: arrays["x"]})
        (scores,) = [output for output in outputs if output.dtype.kind == "f"]
        assert told.accuracy == (scores.argmax(1) == arrays["labels"]).mean()


@pytest.mark.parametrize("form", ["path", "text", "bytes", "proto"])
def test_a_model_comes_as_path_bytes_or_proto(form: str) -> None:
    """All of them give the same model."""
    path = model_path("mlp_torch")
    given = {"path": path, "text": str(path), "bytes": path.read_bytes(), "proto": onnx.load(path)}[form]
    result = prune(given, digits("mlp_torch", SAMPLES), macs="60%")
    assert result.model == pruned(macs="60%").model


def test_the_model_given_is_not_changed() -> None:
    """A ModelProto stays as it was, and shares nothing with the result."""
    model = onnx.load(model_path("resnet_torchscript"))
    before = model.SerializeToString(deterministic=True)
    result = prune(model, digits("resnet_torchscript", 8), macs="60%", probe_samples=2)
    del result.model.graph.node[:]
    assert model.SerializeToString(deterministic=True) == before


def test_data_given_is_not_changed() -> None:
    """Arrays stay as they were."""
    arrays = {name: array.copy() for name, array in digits("mlp_torch", SAMPLES).items()}
    prune(model_path("mlp_torch"), arrays, macs="60%")
    assert arrays.keys() == {"x", "labels"}
    for name, array in digits("mlp_torch", SAMPLES).items():
        np.testing.assert_array_equal(arrays[name], array)


def test_the_result_is_saved_whole(tmp_path: Path) -> None:
    """Model, plan, report and scores each have their file."""
    result = pruned(macs="60%")
    result.save(tmp_path / "out.onnx")
    result.plan.save(tmp_path / "plan.json")
    result.report.save(tmp_path / "report.json")
    assert result.scores is not None
    result.scores.save(tmp_path / "scores.json")
    assert onnx.load(tmp_path / "out.onnx") == result.model
    assert Plan.load(tmp_path / "plan.json") == result.plan
    assert pruned(macs="60%", scores=tmp_path / "scores.json").model == result.model
    assert json.loads((tmp_path / "report.json").read_text())["format"] == "onnxprune-report"


def test_the_input_is_never_saved_over(tmp_path: Path) -> None:
    """Not under its own name, nor through a link."""
    path = tmp_path / "model.onnx"
    path.write_bytes(model_path("mlp_torch").read_bytes())
    (tmp_path / "link.onnx").symlink_to(path)
    result = prune(path, criterion="magnitude")
    for target in (path, str(path), tmp_path / "link.onnx"):
        with pytest.raises(UsageError, match=r"is an input, and inputs are never touched\. Name another file"):
            result.save(target)
    assert path.read_bytes() == model_path("mlp_torch").read_bytes()


def test_apply_repeats_what_a_plan_says() -> None:
    """The same plan, the same model; there are no scores."""
    result = pruned("vit_dynamo", macs="60%", probe_samples=2)
    again = apply(model_path("vit_dynamo"), result.plan, digits("vit_dynamo", SAMPLES))
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    assert again.scores is None
    assert again.plan == result.plan


@pytest.mark.parametrize("criterion", ["sensitivity", "magnitude", "random"])
def test_the_same_seed_gives_the_same_result(criterion: str) -> None:
    """Also without data, where the samples come from the seed."""
    one, same = (prune(model_path("mlp_keras"), criterion=criterion, seed=5) for _ in range(2))
    assert one.model == same.model
    assert one.plan == same.plan
    assert one.scores == same.scores


def test_no_target_and_too_few_samples_to_judge_mean_70_percent_of_the_macs() -> None:
    """A default that is told, with what it takes to prune by accuracy."""
    report = pruned().report
    assert report.notes[0].startswith("No target was given: the target is 70% of the MACs (--macs 70%). To prune as")
    assert "Expected at least 598 samples" in report.notes[0]
    assert report.judgement is None
    assert 0.65 < report.pruned.macs / report.original.macs <= 0.7
    assert pruned(ratio=0.1).report.notes == ()


@pytest.mark.parametrize(
    ("criterion", "note"),
    [
        ("sensitivity", "No calibration data: scores and checks use random inputs, so expect to lose more accuracy."),
        ("magnitude", "No calibration data: the checks and figures are those of random inputs."),
    ],
)
def test_no_data_gives_one_clear_warning(criterion: str, note: str) -> None:
    """In the words that fit."""
    report = prune(model_path("mlp_torch"), macs="60%", criterion=criterion).report
    assert report.notes == (f"{note} Pass data.",)
    assert report.verdict.passed


def test_nothing_removed_is_noted() -> None:
    """A bound that holds already removes nothing, and the user hears it."""
    result = pruned(macs="100%")
    assert result.plan.removed == 0
    assert result.report.notes == ("Nothing was removed: the targets hold already.",)
    assert result.model.graph == onnx.load(model_path("mlp_torch")).graph


SIZES = [
    (name, bound)
    for name in ("mlp_keras", "resnet_torchscript", "vit_dynamo", "gru_torch")
    for bound in ("90%", "60%", "35%", 0.45, 100_000)
    if name != "vit_dynamo" or bound in ("90%", "60%")
    if name != "resnet_torchscript" or bound in ("60%", 100_000)
]


@pytest.mark.parametrize(("name", "bound"), SIZES)
def test_the_bound_on_the_size_holds_for_the_file(name: str, bound: float | str, tmp_path: Path) -> None:
    """Whatever the rewriter adds or drops besides weights."""
    result = prune(model_path(name), digits(name, 4), size=bound, criterion="random")
    result.save(tmp_path / "out.onnx")
    original = model_path(name).stat().st_size
    allowed = (
        bound if isinstance(bound, int) else original * (float(bound[:-1]) / 100 if isinstance(bound, str) else bound)
    )
    assert (tmp_path / "out.onnx").stat().st_size <= allowed


def test_the_report_is_complete() -> None:
    """Settings, figures of both models, latency, groups, what was left alone, verdict, notes and times, as JSON."""
    result = pruned("vit_torchscript", macs="80%", ratio=0.1, probe_samples=4, seed=3)
    report = json.loads(result.report.to_json())
    assert report.keys() == {
        "format", "version", "settings", "loss_name", "original", "pruned", "latency", "speed", "distance", "groups",
        "skipped", "refitted", "weights", "quantized", "judgement", "bytes", "verdict", "notes", "seconds",
    }  # fmt: skip
    assert (report["format"], report["version"]) == ("onnxprune-report", 1)
    assert report["settings"] == {
        "macs": "80%", "params": None, "size": None, "ratio": 0.1, "threshold": None, "criterion": "auto",
        "loss": "kl", "delta": 1.0, "order": 1, "probe samples": 4, "allocation": "curves", "rounds": None,
        "compensate": True, "seed": 3, "max drop": None, "confidence": None, "weights": None, "quantize": None,
        "inexact": False, "latency": None, "multiple of": "auto",
        "setting": "all threads, 1 sample, CPUExecutionProvider",
    }  # fmt: skip
    assert report["loss_name"] == "cross-entropy"
    for figures in (report["original"], report["pruned"]):
        assert figures.keys() == {"macs", "params", "bytes", "loss", "accuracy"}
        assert all(value is not None for value in figures.values())
    timed = {"milliseconds", "ratio", "low", "high", "batch", "rounds", "threads", "provider"}
    assert report["latency"].keys() == report["speed"]["one_thread"].keys() == timed
    assert report["latency"]["low"] <= report["latency"]["ratio"] <= report["latency"]["high"]
    assert {group["name"]: group["after"] for group in report["groups"]} == {
        group.name: len(group.kept) for group in result.plan.groups if group.exact
    }
    assert report["skipped"] == {"/patch/Conv": "LayerNormalization takes a mean over it"}
    proofs = ["equals the zeroed original", "equals it at other sizes"]
    assert [check["name"] for check in report["verdict"]["checks"]][-2:] == proofs
    assert report["seconds"].keys() == {
        "read and couple", "time widths of layers", "run the original", "score channels",
        "measure width curves", "choose and rewrite", "refit layers", "verify", "measure",
    }  # fmt: skip


def test_progress_is_told() -> None:
    """Stages, and how many channels are measured of how many."""
    told: list[tuple[str, int, int]] = []
    arrays = digits("mlp_torch", 4)
    prune(
        model_path("mlp_torch"), arrays, macs="60%", criterion="sensitivity", progress=lambda *said: told.append(said)
    )
    assert [what for what, _, total in told if not total] == [
        "read and couple", "time widths of layers", "run the original", "score channels",
        "measure width curves", "choose and rewrite", "refit layers", "verify", "measure",
    ]  # fmt: skip
    counted = [(what, done) for what, done, total in told if total == 128]
    assert counted[0] == ("probing will take about 1 s", 0)
    assert counted[1:] == [("/hidden/Gemm", done) for done in range(1, 129)]


def test_a_loss_may_be_a_function() -> None:
    """It decides the scores, and it is what the report shows."""
    arrays = digits("mlp_torch", SAMPLES)

    def wrong(outputs: dict, original: dict, labels: np.ndarray) -> np.ndarray:
        return 1 - np.take_along_axis(outputs["probabilities"], labels[:, None], 1)[:, 0]

    result = prune(model_path("mlp_torch"), arrays, loss=wrong, macs="60%")
    assert result.scores is not None
    assert result.scores.loss == result.report.loss_name == "custom"
    outputs = session_for(result.model).run(None, {"x": arrays["x"]})[0]
    expected = wrong({"probabilities": outputs}, {}, arrays["labels"]).mean()
    assert result.report.pruned.loss == pytest.approx(expected, rel=1e-4)


def test_each_stage_is_a_function() -> None:
    """What `prune` does, step by step."""
    arrays = digits("lstm_torch", SAMPLES)
    couplings = onnxprune.couple(onnxprune.read(model_path("lstm_torch")))
    scores = onnxprune.probe(couplings, arrays)
    targets, limits = onnxprune.Targets(macs=0.6), onnxprune.Limits(multiple_of=4)
    plan = onnxprune.choose(couplings, scores, targets, limits)
    model = onnxprune.rewrite(couplings, plan)
    assert onnxprune.verify(couplings, plan, model, arrays).passed
    assert (
        model
        == pruned(
            "lstm_torch", macs=0.6, multiple_of=4, criterion="sensitivity", allocation="global", compensate=False
        ).model
    )


def test_there_are_at_most_15_public_names() -> None:
    """Each with a docstring, and all of them there."""
    assert len(onnxprune.__all__) <= 15
    for name in onnxprune.__all__:
        thing = getattr(onnxprune, name)
        assert inspect.getdoc(thing), name
    public = {
        name for name, value in vars(onnxprune).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(onnxprune.__all__)


def test_the_package_is_typed() -> None:
    """`py.typed` is there."""
    assert (Path(onnxprune.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "taste"}, "Expected a criterion among auto, sensitivity, obs, magnitude, "),
        ({"loss": "hinge"}, "Expected a loss among distance, auto, cross-entropy, mse, kl, found 'hinge'"),
        ({"delta": 0}, "Expected a delta above 0 and up to 1, found 0"),
        ({"probe_samples": 0}, "Expected a number of samples of 1 or more, auto or all, found 0"),
        ({"seed": -1, "criterion": "random"}, "Expected a seed of 0 or more, found -1"),
        ({"macs": "lots"}, "Expected for macs a share up to 100%"),
        ({"only": ["nothing"]}, "--only 'nothing' matches no group and no layer"),
        ({"min_channels": 0}, "Expected min-channels of 1 or more, found 0"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(options: dict[str, object], message: str) -> None:
    """With the words of the command line."""
    with pytest.raises(UsageError) as refusal:
        pruned(**options)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("model", [b"", b"hello", ModelProto(), "none.onnx"])
def test_what_is_no_model_is_refused(model: bytes | ModelProto | str) -> None:
    """One exception tree for everything."""
    with pytest.raises(ModelError, match="Expected an ONNX "):
        prune(model)
    assert issubclass(ModelError, OnnxPruneError)


def test_compare_refuses_other_interfaces() -> None:
    """Both models take and give the same."""
    with pytest.raises(ModelError, match="Expected two models with the same inputs and outputs"):
        compare(model_path("mlp_torch"), model_path("lstm_torch"))


def test_data_of_a_wrong_size_for_a_dynamic_axis_are_told() -> None:
    """Where only certain sizes run, ONNX Runtime's reason is passed on."""
    model = build("a = MatMul(x[N,C], w1[4,8])\n b = Relu(a)\n y = MatMul(b, w2[8,3])")
    with pytest.raises((ModelError, DataError), match="does not run"):
        prune(model, {"x": np.zeros((5, 3), np.float32)})
    assert prune(model, {"x": np.ones((5, 4), np.float32)}).report.verdict.passed
