"""Which samples probes run on: a few well-chosen ones say nearly as much as all of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.probing.losses import Loss


def telling_samples(loss: Loss, outputs: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """
    The numbers of the `count` samples that tell most of what channels matter, ascending.

    Where the loss compares classes, those of the highest entropy of the model's own answer: a change of the outputs
    shows most where the model hesitates. Else samples at even distances.

    Args:
        loss: the loss that is probed.
        outputs: the unpruned model's outputs `[samples, ...]`.
        count: how many; all samples if there are fewer.
    """
    samples = len(next(iter(outputs.values())))
    if count >= samples:
        return np.arange(samples)
    if loss.name not in ("kl", "cross-entropy"):
        return np.arange(count) * samples // count
    return np.sort(np.argsort(-entropies(loss, outputs[loss.outputs[0]]), kind="stable")[:count])


def entropies(loss: Loss, values: np.ndarray) -> np.ndarray:
    """Entropy of the class probabilities `[samples]`, in nats; the mean over positions where there are several."""
    classes = np.moveaxis(values.astype(np.float64), loss.class_axis, -1)
    if not loss.probabilities:
        classes = np.exp(classes - classes.max(-1, keepdims=True))
    classes = classes / np.maximum(classes.sum(-1, keepdims=True), 1e-300)
    each = -(classes * np.log(np.maximum(classes, 1e-300))).sum(-1)
    return np.asarray(each.reshape(len(values), -1).mean(1))
