"""The losses once more, in numpy: what probes are held against."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto

from onnxprune.probing.losses import UserLoss
from onnxprune.reading.observing import session_for

Outputs = Mapping[str, np.ndarray]


def outputs_of(model: ModelProto, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs of the model, with all samples in one batch."""
    session = session_for(model)
    names = [port.name for port in session.get_outputs()]
    feeds = {port.name: arrays[port.name] for port in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


def floats(outputs: Outputs) -> list[np.ndarray]:
    """The float outputs, in float64."""
    return [value.astype(np.float64) for value in outputs.values() if value.dtype.kind == "f"]


def log_probabilities(values: np.ndarray) -> np.ndarray:
    """Log of the class probabilities along the last axis, of probabilities or of logits."""
    if (values >= 0).all() and np.allclose(values.sum(-1), 1, atol=1e-3):
        return np.log(np.maximum(values, 1e-12))
    return (
        values
        - np.log(np.exp(values - values.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - values.max(-1, keepdims=True)
    )


def cross_entropy(outputs: Outputs, original: Outputs, labels: np.ndarray) -> float:
    """Minus the log of the probability of the label."""
    (values,) = floats(outputs)
    return float(-log_probabilities(values)[np.arange(len(labels)), labels].mean())


def kl(outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> float:
    """KL divergence from the original's own probabilities."""
    (values,), (wanted,) = floats(outputs), floats(original)
    log_p, log_q = log_probabilities(values), log_probabilities(wanted)
    return float((np.exp(log_q) * (log_q - log_p)).sum(-1).mean())


def mse(outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> float:
    """Squared distance to the original's outputs over their mean square."""
    pairs = zip(floats(outputs), floats(original), strict=True)
    return float(sum(np.square(one - other).mean() / np.square(other).mean() for one, other in pairs))


def furthest(outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> np.ndarray:
    """A loss of the user's own: for each sample, the largest distance from the original in any output."""
    pairs = zip(floats(outputs), floats(original), strict=True)
    return np.max([np.abs(one - other).reshape(len(one), -1).max(1) for one, other in pairs], axis=0)


def furthest_mean(outputs: Outputs, original: Outputs, labels: np.ndarray | None) -> float:
    """The mean of `furthest`: a loss that is one number in all."""
    return float(furthest(outputs, original, labels).mean())


IN_NUMPY: dict[str, UserLoss] = {"cross-entropy": cross_entropy, "kl": kl, "mse": mse, "custom": furthest}
