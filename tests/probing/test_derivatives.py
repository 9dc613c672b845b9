"""Small steps: central differences are the textbook's derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import UsageError
from onnxprune.probing.probe import probe
from tests.bundled import bundled, digits

SAMPLES = 16

Layers = list[tuple[np.ndarray, np.ndarray]]


def layers_of(name: str) -> Layers:
    """Weights `[inputs, outputs]` and biases of an MLP, first layer first."""
    constants = {key: constant.array() for key, constant in bundled(name).graph.constants.items()}
    if name == "mlp_sklearn":
        named = [(constants[f"coefficient{n}"], constants[f"intercepts{n}"]) for n in ("", "1", "2")]
        return [(weight, bias.ravel()) for weight, bias in named]
    if name == "mlp_torch":
        return [(constants[f"{n}.weight"].T, constants[f"{n}.bias"]) for n in ("hidden", "output")]
    matrices = sorted((a for a in constants.values() if a.ndim == 2), key=lambda a: -a.size)
    biases = sorted((a for a in constants.values() if a.ndim == 1 and a.dtype.kind == "f"), key=lambda a: -a.size)
    return list(zip(matrices, biases, strict=True))


def inputs_of(name: str, samples: np.ndarray) -> np.ndarray:
    """What the first layer reads: the pixels in a row, standardized in the scikit-learn model."""
    flat = samples.reshape(len(samples), -1).astype(np.float64)
    if name != "mlp_sklearn":
        return flat
    scaler = next(node for node in bundled(name).graph.nodes if node.op_type == "Scaler")
    return (flat - scaler.attributes["offset"]) * scaler.attributes["scale"]


def gradients(layers: Layers, inputs: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The derivative of the mean cross-entropy in the gates behind each hidden layer, by the chain rule."""
    hidden = [inputs]
    for weight, bias in layers[:-1]:
        hidden.append(np.maximum(hidden[-1] @ weight + bias, 0))
    logits = hidden[-1] @ layers[-1][0] + layers[-1][1]
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    slope = probabilities / probabilities.sum(1, keepdims=True) - np.eye(logits.shape[1])[labels]
    found = []
    for (weight, _), values in zip(layers[:0:-1], hidden[:0:-1], strict=True):
        in_values = slope @ weight.T
        found.insert(0, (in_values * values).mean(0))
        slope = in_values * (values > 0)
    return found


@pytest.mark.parametrize("name", ["mlp_torch", "mlp_keras", "mlp_sklearn"])
def test_small_steps_give_the_analytic_derivative(name: str) -> None:
    """A score at δ = 0.01 is minus dL/dg of the gate, to 1 % of the largest."""
    arrays = digits(name, SAMPLES)
    analytic = gradients(layers_of(name), inputs_of(name, arrays["x"]), arrays["labels"])
    measured = probe(bundled(name), arrays, "cross-entropy", delta=0.01)
    for entry, expected in zip(measured.groups, analytic, strict=True):
        np.testing.assert_allclose(entry.scores, -expected, rtol=0.01, atol=0.002 * np.abs(expected).max())


@pytest.mark.parametrize("loss", ["distance", "kl", "mse"])
def test_the_derivative_of_a_distance_is_refused(loss: str) -> None:
    """A distance is least at the model itself: its derivative is zero there, and the message says what to do."""
    with pytest.raises(UsageError, match=r"is zero at the model itself\. Give labels and --loss cross-entropy"):
        probe(bundled("mlp_torch"), digits("mlp_torch", 4), loss, delta=0.01)


@pytest.mark.parametrize("delta", [0, -0.5, 1.5, float("nan")])
def test_a_step_that_is_none_is_refused(delta: float) -> None:
    """Delta lies above 0 and up to 1."""
    with pytest.raises(UsageError, match=f"Expected a delta above 0 and up to 1, found {delta}"):
        probe(bundled("mlp_torch"), digits("mlp_torch", 4), delta=delta)
