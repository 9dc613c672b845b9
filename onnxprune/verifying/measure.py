"""What a model does, measured: accuracy, and the distance between outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.probing.losses import Loss, class_axis


def accuracy(outputs: Mapping[str, np.ndarray], loss: Loss, labels: np.ndarray | None) -> float | None:
    """The share of samples whose highest class is the label; None where that means nothing."""
    if labels is None or labels.dtype.kind not in "iu":
        return None
    for name in loss.outputs:
        values = outputs.get(name)
        axis = None if values is None else class_axis(values.shape, labels.shape)
        if values is not None and axis is not None and values.dtype.kind == "f":
            return float((values.argmax(axis) == labels).mean())
    return None


def distance(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    """Root of the summed squared difference over the root of the summed square of `one`, over all float outputs."""
    apart = size = 0.0
    for name, values in one.items():
        if values.dtype.kind == "f" and name in other and other[name].shape == values.shape:
            apart += float(np.square(values.astype(np.float64) - other[name].astype(np.float64)).sum())
            size += float(np.square(values, dtype=np.float64).sum())
    return float(np.sqrt(apart / size)) if size else 0.0
