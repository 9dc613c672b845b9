"""Each metric says what its name says, of every sample, and a model loses nothing against itself."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxprune.errors import DataError, UsageError
from onnxprune.judging.allowance import allowance
from onnxprune.judging.metrics import METRICS, Outputs, prepare_metric

RNG = np.random.default_rng(0)
SCORES = np.array([[3, 1, 2, 0], [0, 5, 1, 2], [1, 1, 1, 1], [0, 0, 1, 9]], np.float32)
LABELS = np.array([0, 2, 1, 3])
IMAGES = RNG.normal(size=(6, 3, 4, 5)).astype(np.float32)
FINITE = arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32))


def logits(values: np.ndarray) -> Outputs:
    return {"y": values}


def names() -> list[str]:
    """All metrics, and one of the family."""
    return [*METRICS, "top-2"]


def labels_for(name: str, values: np.ndarray) -> np.ndarray | None:
    """Labels that the metric can use."""
    if name == "psnr":
        return (values + np.arange(values.size).reshape(values.shape) % 3).astype(np.float32)
    return np.arange(len(values)) % 3 if name in ("accuracy", "top-2") else None


@pytest.mark.parametrize("name", names())
@given(values=FINITE)
def test_the_original_loses_nothing_against_itself(name: str, values: np.ndarray) -> None:
    """Not even a rounding error."""
    metric = prepare_metric(logits(values), labels_for(name, values), name)
    assert not metric.losses(logits(values.copy())).any()


@pytest.mark.parametrize("name", names())
def test_samples_are_measured_one_by_one(name: str) -> None:
    """Each sample has its number, which goes with it when samples change places."""
    values = RNG.normal(size=(8, 3)).astype(np.float32)
    other, order = logits(values + RNG.normal(size=values.shape).astype(np.float32)), RNG.permutation(8)
    metric = prepare_metric(logits(values), labels_for(name, values), name)
    found = metric.values(other)
    assert found.shape == (8,)
    assert len(metric) == 8
    np.testing.assert_allclose(metric.only(order).values(logits(other["y"][order])), found[order])


def test_accuracy_is_the_share_of_right_answers() -> None:
    """Of equal classes the first is the answer, as argmax has it."""
    metric = prepare_metric(logits(SCORES), LABELS, "accuracy")
    assert metric.original().tolist() == [1, 0, 0, 1]
    assert metric.kind == "answers"


def test_top_k_takes_the_first_k() -> None:
    """Of equal classes the first ones: a model that knows nothing does not get all right."""
    assert prepare_metric(logits(SCORES), LABELS, "top-2").original().tolist() == [1, 0, 1, 1]
    assert prepare_metric(logits(SCORES), LABELS, "top-3").original().tolist() == [1, 1, 1, 1]
    dull = prepare_metric(logits(SCORES), LABELS, "top-1").values(logits(np.zeros_like(SCORES)))
    assert dull.tolist() == [1, 0, 0, 0]


def test_answers_that_are_nan_are_wrong() -> None:
    """A broken model gets no credit for the class that argmax happens to return."""
    broken = SCORES.copy()
    broken[:, 0] = np.nan
    for name in ("accuracy", "top-3", "agreement"):
        assert not prepare_metric(logits(SCORES), LABELS, name).values(logits(broken)).any()


def test_agreement_needs_no_labels() -> None:
    """It asks whether the answer is still the same, and so can only lose."""
    other = SCORES.copy()
    other[0, 1] = 7
    metric = prepare_metric(logits(SCORES), None, "agreement")
    assert metric.values(logits(other)).tolist() == [0, 1, 1, 1]
    assert metric.kind == "losses"


def test_dense_answers_count_by_positions() -> None:
    """A segmentation loses shares of a sample: those are numbers, not answers."""
    other = IMAGES.copy()
    other[0, :, 0, :] = -other[0, :, 0, :]
    metric = prepare_metric(logits(IMAGES), None, "agreement")
    found = metric.values(logits(other))
    assert 0.5 < found[0] < 1
    assert found[1:].tolist() == [1] * 5
    labelled = prepare_metric(logits(IMAGES), IMAGES.argmax(1))
    assert (labelled.name, labelled.kind, labelled.original().tolist()) == ("accuracy", "numbers", [1] * 6)


def test_models_may_choose_classes_themselves() -> None:
    """An output of class numbers is an answer as well."""
    chosen = {"label": np.array([0, 1, 1, 3])}
    assert prepare_metric(chosen, LABELS).original().tolist() == [1, 0, 1, 1]
    assert prepare_metric(chosen).name == "agreement"


@pytest.mark.parametrize(
    ("values", "labels", "usual"),
    [
        (SCORES, LABELS, "accuracy"),
        (SCORES, LABELS.astype(np.float32), "agreement"),
        (SCORES, None, "agreement"),
        (IMAGES, LABELS, "cosine"),
        (IMAGES, IMAGES.argmax(1), "accuracy"),
        (np.exp(IMAGES) / np.exp(IMAGES).sum(1, keepdims=True), None, "agreement"),
        (SCORES[:, :1], None, "mse"),
    ],
)
def test_the_usual_metric_suits_outputs_and_labels(values: np.ndarray, labels: np.ndarray | None, usual: str) -> None:
    """Accuracy with labels, agreement for classes, else the direction of the outputs, or their error."""
    assert prepare_metric(logits(values), labels).name == usual


def test_cosine_sees_direction_and_mse_sees_size() -> None:
    """Outputs of twice the size point the same way."""
    twice = logits(2 * IMAGES)
    assert prepare_metric(logits(IMAGES), None, "cosine").losses(twice) == pytest.approx(0, abs=1e-12)
    assert prepare_metric(logits(IMAGES), None, "mse").losses(twice).mean() == pytest.approx(1)
    assert prepare_metric(logits(IMAGES), None, "cosine").losses(logits(-IMAGES)) == pytest.approx(2)


def test_every_output_counts_in_its_own_units() -> None:
    """A small output that is lost shows beside a large one."""
    original = {"large": 1000 * SCORES, "small": SCORES}
    half_lost = {"large": 1000 * SCORES, "small": np.zeros_like(SCORES)}
    assert prepare_metric(original, None, "mse").losses(half_lost).mean() == pytest.approx(0.5)
    assert prepare_metric(original, None, "cosine").losses(half_lost).mean() > 0.2


def test_mse_of_labels_counts_what_the_error_grew_by() -> None:
    """Against labels the original errs too; the drop is what came on top, in shares of their mean square."""
    wanted = IMAGES + 1
    metric = prepare_metric(logits(IMAGES), wanted, "mse")
    energy = float(np.square(wanted.astype(np.float64)).mean())
    assert metric.original() == pytest.approx(1 / energy, rel=1e-5)
    assert metric.losses(logits(IMAGES - 1)) == pytest.approx((4 - 1) / energy, rel=1e-5)


def test_psnr_drops_by_shares_of_the_original() -> None:
    """Twice the noise is 6 dB less; of 20 dB that is a drop of 30 %."""
    wanted = np.tile(np.linspace(0, 1, 10, dtype=np.float32), (4, 1))
    metric = prepare_metric(logits(wanted + np.float32(0.1)), wanted, "psnr")
    assert metric.original() == pytest.approx(20, abs=1e-3)
    assert metric.losses(logits(wanted + np.float32(0.2))) == pytest.approx(0.301, abs=1e-3)


def test_a_function_is_a_metric() -> None:
    """It gets outputs and labels; zeros and ones of it are answers."""

    def right(outputs: Outputs, labels: np.ndarray | None) -> np.ndarray:
        assert labels is not None
        return outputs["y"].argmax(1) == labels

    metric = prepare_metric(logits(SCORES), LABELS, right)
    assert (metric.name, metric.kind, metric.original().tolist()) == ("right", "answers", [1, 0, 0, 1])


def test_a_function_is_found_in_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By module:function; the search path is left as it was."""
    (tmp_path / "metrics_of_mine.py").write_text("def highest(outputs, labels):\n    return outputs['y'].max(1)\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    metric = prepare_metric(logits(SCORES), None, "metrics_of_mine:highest")
    assert metric.original().tolist() == [3, 5, 1, 9]
    assert metric.kind == "numbers"
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("precision", None, "Expected a metric among accuracy, agreement, cosine, mse, psnr, top-5"),
        ("top-0", None, "Expected a metric among"),
        ("accuracy", None, "found no labels. Add an array 'labels' to the data, or name it: --labels."),
        ("accuracy", LABELS.astype(np.float32), "found labels float32 [4]. Convert the labels."),
        ("top-4", LABELS, "more than 4 classes to choose from, found 4 in output 'y'. Ask for accuracy."),
        ("psnr", LABELS, "float labels of an output's shape"),
        ("nowhere_at_all:f", None, "No module named 'nowhere_at_all'"),
        ("math:f", None, "Expected a function 'f' in the module 'math'"),
        ("math:pi", None, "found an object of type float"),
        ("math:", None, "Expected a metric as MODULE:FUNCTION"),
        ("math:sqrt", None, "found that it fails: TypeError"),
    ],
)
def test_mistakes_are_explained(name: str, labels: np.ndarray | None, said: str) -> None:
    """What was expected, what was found, and what to do."""
    with pytest.raises(UsageError) as failure:
        prepare_metric(logits(SCORES), labels, name)
    assert said in str(failure.value)


def test_functions_must_say_a_finite_number_of_each_sample() -> None:
    """One number in all has no spread to bound anything with."""
    with pytest.raises(UsageError, match=r"a number for each of 4 samples, found an array of shape \[\]"):
        prepare_metric(logits(SCORES), None, lambda outputs, labels: np.float64(0.5))
    with pytest.raises(UsageError, match="finite numbers for the original, found nan for sample 0 and 3 more"):
        prepare_metric(logits(SCORES), None, lambda outputs, labels: np.full(4, np.nan))


def test_outputs_must_suit_the_metric() -> None:
    """Class numbers have no cosine, and a single number no class."""
    with pytest.raises(UsageError, match="a float output of one size"):
        prepare_metric({"label": LABELS}, None, "cosine")
    with pytest.raises(UsageError, match="an output of at least two classes"):
        prepare_metric(logits(SCORES[:, :1]), None, "agreement")
    with pytest.raises(DataError, match="Expected labels from 0 to 3 for output 'y' of 4 classes, found 0 to 9"):
        prepare_metric(logits(SCORES), np.array([0, 1, 9, 3]))


def test_allowances_are_shares() -> None:
    """In percent or as numbers."""
    assert allowance("1%", "95%") == allowance(0.01, 0.95) == allowance()
    assert str(allowance("0.5 %", 0.9)) == "a drop of at most 0.005 at a confidence of 0.9"


@pytest.mark.parametrize("given_", [("0%", 0.95), ("much", 0.95), (1, 0.95), (0.01, "50%"), (0.01, 1), (0.01, "nan")])
def test_other_allowances_are_refused(given_: tuple[float | str, float | str]) -> None:
    """A drop of nothing cannot be shown, nor can anything be shown for sure."""
    with pytest.raises(UsageError, match=r"Expected for (max-drop|confidence) a share"):
        allowance(*given_)
