"""Models of every kind can be probed, and the scores are the loss changes of the rewritten model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import couple
from onnxprune.errors import DataError, UsageError
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import gather
from onnxprune.probing.losses import prepare_loss
from onnxprune.probing.probe import loss_of, probe
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import digits, model_path
from tests.models import build

SAMPLES = 10
LAYERS = "a = Gemm(x[{batch}5], w1[5,8], b1[8])\n b = Relu(a)\n y = Gemm(b, w2[8,3], b2[3])"

MODELS = {
    "dynamic": build(LAYERS.format(batch="N,")),
    "batch of one": build(LAYERS.format(batch="1,")),
    "batch of four": build(LAYERS.format(batch="4,")),
    "no batch": build("a = MatMul(x[5], w1[5,8])\n b = Relu(a)\n y = MatMul(b, w2[8,3])"),
    "image without batch": build("""
        a = Unsqueeze(x[2,6,6], axes{0})
        b = Conv(a, w1[8,2,3,3])
        c = Relu(b)
        d = Flatten(c)
        e = MatMul(d, w2[128,3])
        y = Squeeze(e, axes{0})
    """),
    "two inputs": build("""
        a = Gemm(x1[N,5], w1[5,8])
        b = Gemm(x2[N,4], w2[4,8])
        c = Add(a, b)
        d = Relu(c)
        y = Gemm(d, w3[8,3])
    """),
    "samples last": build(
        "a = MatMul(x[N,7,4], w1[4,8])\n b = Relu(a)\n c = MatMul(b, w2[8,3])\n y = Transpose<perm=[1,2,0]>(c)"
    ),
    "one number": build(
        "a = MatMul(x[N,4], w1[4,8])\n b = Relu(a)\n c = MatMul(b, w2[8,3])\n y = ReduceMean<keepdims=0>(c)"
    ),
    "time first": build("""
        c, a = RNN<hidden_size=8>(x[T,1,4], w1[1,8,4], w2[1,8,8])
        b = Squeeze(a, axes{0})
        y = MatMul(b, w3[8,3])
    """),
}
"""Small models with 8 channels in one group; what differs is where the samples are."""

SHAPES = {"two inputs": {"x1": (5,), "x2": (4,)}, "samples last": {"x": (7, 4)}, "one number": {"x": (4,)}}
SHAPES |= {"image without batch": {"x": (2, 6, 6)}, "time first": {"x": (6, 1, 4)}}


def samples_for(kind: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = SHAPES.get(kind, {"x": (5,)})
    return {name: random.standard_normal((SAMPLES, *shape)).astype(np.float32) for name, shape in shapes.items()}


def loss_changes(model: ModelProto, data: Mapping[str, np.ndarray], loss: str) -> np.ndarray:
    """For each channel of the first group, the loss of the model rewritten without it minus the original's."""
    couplings = couple(read(model))
    calibration = gather(couplings.graph, data)
    prepared = prepare_loss(couplings.graph, calibration, loss)
    group = couplings.groups[0]
    whole = loss_of(couplings, calibration, prepared)
    without = [
        rewrite(couplings, plan_of(couplings, {group.name: np.delete(np.arange(group.size), channel)}))
        for channel in range(group.size)
    ]
    return np.array([loss_of(couplings, calibration, prepared, model=smaller) - whole for smaller in without])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("loss", ["distance", "mse"])
def test_scores_are_loss_changes_wherever_the_samples_are(kind: str, loss: str) -> None:
    """With a fixed batch, no batch or outputs that do not count samples, scores are the loss changes of removals."""
    couplings, data = couple(read(MODELS[kind])), samples_for(kind)
    (entry,) = probe(couplings, data, loss, groups=couplings.groups[:1]).groups
    np.testing.assert_allclose(entry.scores, loss_changes(MODELS[kind], data, loss), rtol=1e-3, atol=1e-6)
    assert len(entry.scores) == 8
    assert np.median(entry.scores) > 1e-4


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_model_is_pruned_without_data(kind: str) -> None:
    """Made-up samples have the right shapes, and the pruned model passes its verification."""
    result = prune(MODELS[kind], macs="70%")
    assert 0 < result.report.groups[0].after < 8
    assert result.report.verdict.passed


@pytest.mark.parametrize("kind", ["batch of one", "batch of four", "no batch"])
def test_samples_count_alike_in_any_batch(kind: str) -> None:
    """Cross-entropy and accuracy do not depend on how many samples the model takes at a time."""
    if kind == "no batch":
        plain = build("a = MatMul(x[N,5], w1[5,8])\n b = Relu(a)\n y = MatMul(b, w2[8,3])")
    else:
        plain = MODELS["dynamic"]
    data = samples_for(kind) | {"labels": np.arange(SAMPLES) % 3}
    one, other = (
        prune(model, data, criterion="sensitivity", loss="cross-entropy", ratio=0.5) for model in (MODELS[kind], plain)
    )
    np.testing.assert_allclose(one.scores.groups[0].scores, other.scores.groups[0].scores, rtol=1e-4, atol=1e-6)
    assert one.report.original.loss == pytest.approx(other.report.original.loss, rel=1e-5)
    assert one.report.pruned.accuracy == other.report.pruned.accuracy


@pytest.mark.parametrize("kind", ["no batch", "image without batch"])
def test_feeds_without_a_batch_axis_are_samples(kind: str) -> None:
    """Feeds as such a model takes them are joined into samples."""
    graph, data = read(MODELS[kind]), samples_for(kind)
    joined = gather(graph, [{"x": sample} for sample in data["x"]])
    np.testing.assert_array_equal(joined.arrays["x"], data["x"])


def test_samples_that_disturb_each_other_are_not_mixed_with_other_probes() -> None:
    """Where the first axis is time, the array is one sequence, which no other probe may follow."""
    model = build("""
        a = MatMul(x[T,1,4], w1[4,8])
        b = Relu(a)
        c = RNN<hidden_size=6>(b, w2[1,6,8], w3[1,6,6])
        d = Squeeze(c, axes{1})
        y = MatMul(d, w4[6,3])
    """)
    couplings, data = couple(read(model)), {"x": np.random.default_rng(0).standard_normal((20, 1, 4), np.float32)}
    (entry,) = probe(couplings, data, "mse", groups=couplings.groups[:1]).groups
    assert entry.name == "a"
    np.testing.assert_allclose(entry.scores, loss_changes(model, data, "mse"), rtol=1e-3, atol=1e-6)


def half(model: ModelProto) -> ModelProto:
    """The model with every float32 weight, input and output made float16."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model


def test_half_precision_is_probed_and_pruned() -> None:
    """A float16 model takes float16 samples; its scores are close to those in float32, and the pruned model passes."""
    model = half(onnx.load(model_path("mlp_torch")))
    arrays = digits("mlp_torch", 32)
    arrays = {"x": arrays["x"].astype(np.float16), "labels": arrays["labels"]}
    asked = {"criterion": "sensitivity", "loss": "cross-entropy", "macs": "60%"}
    result = prune(model, arrays, **asked)
    precise = prune(model_path("mlp_torch"), digits("mlp_torch", 32), **asked)
    agreement = np.corrcoef(result.scores.groups[0].scores, precise.scores.groups[0].scores)[0, 1]
    assert result.report.verdict.passed
    assert agreement > 0.999


def test_double_precision_is_probed_and_pruned() -> None:
    """A float64 model in the middle of casts is probed in float64."""
    model = build("""
        a = Cast<to=11>(x[N,5])
        b = MatMul(a, double w1[5,8])
        c = Relu(b)
        d = MatMul(c, double w2[8,3])
        y = Cast<to=1>(d)
    """)
    assert prune(model, samples_for("dynamic"), ratio=0.5).report.groups[0].after == 4


TOKENS = build("""
    a = Gather(w0[20,8], int64 x[N,6])
    b = MatMul(a, w1[8,16])
    c = Relu(b)
    d = MatMul(c, w2[16,4])
    y = ReduceMean<keepdims=0>(d, axes{1})
""")


def test_tokens_are_made_up_within_the_vocabulary() -> None:
    """Without data, integer inputs get numbers that the embedding knows."""
    result = prune(TOKENS, macs="60%")
    assert result.report.verdict.passed
    assert any("No calibration data" in note for note in result.report.notes)


def test_tokens_out_of_the_vocabulary_are_refused() -> None:
    """Samples on which the model does not run are named, with ONNX Runtime's reason."""
    with pytest.raises(DataError, match=r"does not run on samples 0 to 3: .*idx=50 must be within.* Mend the data"):
        prune(TOKENS, np.full((4, 6), 50))


def test_a_model_without_float_outputs_is_pruned_by_what_needs_no_loss() -> None:
    """By what its layers lose or by magnitude; where a loss is asked for, the message says what else there is."""
    model = build("a = MatMul(x[N,4], w1[4,8])\n b = Relu(a)\n c = MatMul(b, w2[8,3])\n y = ArgMax<axis=1>(c)")
    data = samples_for("one number")
    with pytest.raises(UsageError, match="Prune with --criterion magnitude"):
        prune(model, data, criterion="sensitivity")
    for criterion in ("magnitude", None):
        report = prune(model, data, criterion=criterion).report
        assert report.verdict.passed
    assert (report.original.loss, report.original.accuracy) == (None, None)


def test_outputs_that_change_size_do_not_count() -> None:
    """An output whose size depends on the sample is left out of the loss and still verified."""
    model = build("""
        a = Gemm(x[N,5], w1[5,8])
        b = Relu(a)
        y1 = Gemm(b, w2[8,3])
        y2 = NonZero(x)
    """)
    assert prune(model, samples_for("dynamic"), ratio=0.5).report.verdict.passed


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda outputs, original, labels: np.zeros(3),
            r"one number for each of 10 samples, .* found an array of shape \[3\]",
        ),
        ("hinge", "Expected a loss among distance, auto, cross-entropy, mse, kl, found 'hinge'"),
    ],
)
def test_losses_that_are_none_are_refused(loss: object, message: str) -> None:
    """A loss is one of the names, or returns a number for each sample or one in all."""
    with pytest.raises(UsageError, match=message):
        probe(couple(read(MODELS["dynamic"])), samples_for("dynamic"), loss)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    """Changes of NaN are no scores: the message names the first sample at fault."""

    def undefined(outputs: Mapping[str, np.ndarray], original: object, labels: object) -> np.ndarray:
        return np.where(outputs["y"][:, 0] > np.median(outputs["y"][:, 0]), np.nan, 1.0)

    with pytest.raises(DataError, match="found NaN or infinity for 5 of 10 samples"):
        probe(couple(read(MODELS["dynamic"])), samples_for("dynamic"), undefined)


def test_a_channel_whose_removal_is_not_finite_goes_last() -> None:
    """A score of NaN would put it first."""

    def undefined(outputs: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], labels: object) -> np.ndarray:
        far = np.abs(outputs["y"] - original["y"]).max(1)
        return np.where(far > worst, np.nan, far)

    couplings, data = couple(read(MODELS["dynamic"])), samples_for("dynamic")
    worst = np.inf
    scores = np.array(probe(couplings, data, undefined).groups[0].scores)
    worst = 1.5 * np.sort(scores)[-2]
    again = np.array(probe(couplings, data, undefined).groups[0].scores)
    assert np.isfinite(again).all()
    assert again.argmax() in np.flatnonzero(again > 1e30)


def test_a_model_that_only_runs_on_one_sample_is_pruned() -> None:
    """A dynamic batch in name, and a Reshape to one sample inside, as traced exports have it."""
    model = build("a = Gemm(x[N,6], w[6,8])\n b = Reshape(a, s{1,8})\n y = Gemm(b, v[8,3])")
    samples = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    result = prune(model, samples, ratio=0.5)
    assert result.report.verdict.passed
    assert [group.after for group in result.report.groups] == [4]
