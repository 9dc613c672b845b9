"""The last layer of a classifier is fitted to the original's probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from onnxprune.coupling.couple import couple
from onnxprune.probing.calibration import gather
from onnxprune.reading.read import read
from onnxprune.repairing import repair as repairing
from onnxprune.repairing.answers import Answers, answer_steps, softmax
from onnxprune.repairing.repair import repair
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import bundled, digits
from tests.models import build
from tests.repairing.test_repair import keeping, outputs

RANDOM = np.random.default_rng(0)


def some_answers(rows: int = 300, features: int = 4, classes: int = 3) -> Answers:
    """Scores that miss what a random layer says of random inputs, every fifth row held out."""
    inputs = np.hstack([RANDOM.standard_normal((rows, features)), np.ones((rows, 1))])
    right, now = (inputs @ RANDOM.standard_normal((features + 1, classes)) for _ in range(2))
    return Answers(inputs, now, softmax(right), np.arange(rows) % 5 == 4)


def test_the_fit_is_the_least_divergence() -> None:
    """By a minimizer that knows nothing of bounds on curvatures."""
    answers = some_answers()
    shape = (answers.inputs.shape[1], answers.scores.shape[1])
    found = answers.change(1e-8, constant_is_free=True)
    least = minimize(lambda flat: answers.divergence(flat.reshape(shape)), np.zeros(shape).ravel()).fun
    assert answers.divergence(np.zeros(shape)) > 0.1
    assert answers.divergence(found) == pytest.approx(least, abs=1e-4)


def test_a_constant_that_is_not_free_does_not_move() -> None:
    """Where a layer has no bias."""
    found = some_answers().change(1e-3, constant_is_free=False)
    assert np.abs(found[-1]).max() < 1e-9
    assert np.abs(found[:-1]).max() > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_weights_that_answer_no_better_on_rows_held_out_stay(seed: int) -> None:
    """And where they change, they answer better there."""
    random = np.random.default_rng(seed)
    answers = some_answers(rows=25 + 20 * seed, features=8)
    start = random.standard_normal((9, 3))
    best, penalty = answers.best(start, constant_is_free=True)
    if penalty is None:
        np.testing.assert_array_equal(best, start)
    chosen = {p: answers.fitted.change(p, constant_is_free=True) for p in (penalty,) if p is not None}
    for change in chosen.values():
        assert answers.held_out.divergence(change) < answers.held_out.divergence(np.zeros_like(start))


@pytest.mark.parametrize(
    ("last", "makes_answers"),
    [
        ("y = Gemm(a, w2[6,5], b2[5])", True),
        ("c = MatMul(a, w2[6,5])\n y = Add(c, b2[5])", True),
        ("c = Gemm(a, w2[6,5], b2[5])\n y = Softmax(c)", True),
        ("c = Gemm(a, w2[6,5], b2[5])\n y = Sigmoid(c)", False),
        ("c = MatMul(a, w2[6,5])\n y = Sub(b2[5], c)", False),
        ("c = Gemm(a, w2[6,5], b2[5])\n d = Softmax(c)\n y = Mul(d, c)", False),
    ],
)
def test_only_a_layer_that_makes_answers_is_fitted_to_them(last: str, makes_answers: bool) -> None:
    """Scores or the probabilities that they stand for, nothing else."""
    couplings = couple(read(build(f"h = Gemm(x[N,4], w1[4,6], b1[6])\n a = Relu(h)\n {last}")))
    calibration = gather(couplings.graph, {"x": RANDOM.standard_normal((200, 4)).astype(np.float32)})
    plan = keeping(couplings, 0.5)
    layers = repair(couplings, plan, rewrite(couplings, plan), calibration).layers
    assert any("KL of answers" in layer.layer for layer in layers) == makes_answers


def test_answers_are_nearer_to_the_originals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Than by least squares alone, on digits that no layer was fitted to."""
    couplings, arrays = bundled("mlp_torch"), digits("mlp_torch", 1000)
    fitted = gather(couplings.graph, {name: values[:600] for name, values in arrays.items()})
    unseen = {name: values[600:] for name, values in arrays.items()}
    plan = keeping(couplings, 0.15)
    wanted = outputs(couplings.graph.model, unseen).astype(np.float64)
    found = {}
    for name, steps in (("with", answer_steps), ("without", lambda couplings: iter(()))):
        monkeypatch.setattr(repairing, "answer_steps", steps)
        made = outputs(repair(couplings, plan, rewrite(couplings, plan), fitted).model, unseen).astype(np.float64)
        found[name] = float((wanted * (np.log(wanted + 1e-12) - np.log(made + 1e-12))).sum(1).mean())
    assert found["with"] < 0.97 * found["without"]
