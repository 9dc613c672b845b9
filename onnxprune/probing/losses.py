"""
The loss that is probed: what it compares the model's outputs with, for each sample.

Cross-entropy and KL share one form, the sum over classes of t · (log t - log p): for KL, t are the original model's own
probabilities; for cross-entropy, t is one at the label and log t is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from onnx import ModelProto

from onnxprune.errors import DataError, UsageError
from onnxprune.probing.calibration import Calibration, first_line
from onnxprune.reading.graph import FLOAT_TYPES, Graph
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.parts import run_each

LossName = Literal["distance", "auto", "cross-entropy", "mse", "kl"]
UserLoss = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray], np.ndarray | None], np.ndarray | float]
"""Called with outputs, the original's outputs and labels of some samples; returns a number for each, or one for all."""

SMALLEST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Loss:
    """
    A loss made ready for a model and its samples.

    `targets` holds what the loss compares with, `[samples, ...]` for each extra input of the probing model; `outputs`
    are the model outputs it reads, and `class_axis` is the axis of classes in these targets. `stacked` as in
    `Calibration`: the graph then knows no axis for samples.
    """

    name: str
    outputs: tuple[str, ...]
    class_axis: int
    probabilities: bool
    targets: Mapping[str, np.ndarray]
    user: UserLoss | None = None
    stacked: bool = False
    energies: Mapping[str, float] = field(default_factory=dict)
    """Mean square of each output, which its squared error is relative to."""

    def only(self, samples: np.ndarray) -> Loss:
        """The same loss for only these samples."""
        return replace(self, targets={name: values[samples] for name, values in self.targets.items()})

    @property
    def is_distance(self) -> bool:
        """Is it a distance to the original's outputs, and so least at the original itself?"""
        return self.name in ("kl", "mse")


def outputs_of(
    model: ModelProto | Session, calibration: Calibration, *, batch: int = 64, threads: int = 0
) -> dict[str, np.ndarray]:
    """
    Every measured output of the model for every sample, `[samples, ...]` each.

    An output whose shape changes from sample to sample is left out.

    Raises:
        DataError: the model does not run on these samples.
    """
    session = session_for(model, threads=threads) if isinstance(model, ModelProto) else model
    names = calibration.outputs
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    batches = list(calibration.batches(batch))
    runs = run_each(session, names, (calibration.at(calibration.filled(samples)) for samples in batches))
    for samples in batches:
        try:
            found = next(runs)
        except Exception as failure:  # ONNX Runtime raises many kinds
            which = f"{samples[0]} to {samples[-1]}" if len(samples) > 1 else f"{samples[0]}"
            raise DataError(
                f"The model does not run on samples {which}: {first_line(failure)} Mend the data."
            ) from None
        for name, value in zip(names, found, strict=True):
            parts[name].append(value[None] if calibration.stacked else value[: len(samples)])
    alike = {name: len({value.shape[1:] for value in values}) == 1 for name, values in parts.items()}
    return {name: np.concatenate(values) for name, values in parts.items() if alike[name]}


def prepare_loss(
    graph: Graph,
    calibration: Calibration,
    requested: LossName | UserLoss = "distance",
    *,
    reference: Mapping[str, np.ndarray] | None = None,
    threads: int = 0,
) -> Loss:
    """
    The loss for these samples.

    `"distance"` needs no labels: KL to the model's own outputs when it has one float output of probabilities or of one
    row of logits per sample; else the relative squared error to its own outputs. `"auto"` is cross-entropy when the
    labels are integers that fit an output, else the distance.

    Raises:
        UsageError: the loss does not suit the model's outputs.
        DataError: labels out of range.
    """
    if not callable(requested) and requested not in get_args(LossName):
        raise UsageError(f"Expected a loss among {', '.join(get_args(LossName))}, found {requested!r}.")
    outputs = dict(reference or outputs_of(graph.model, calibration, threads=threads))
    return replace(loss_for(graph, outputs, calibration, requested), stacked=calibration.stacked)


def loss_for(
    graph: Graph, outputs: Mapping[str, np.ndarray], calibration: Calibration, requested: LossName | UserLoss
) -> Loss:
    """The loss for these outputs of the original."""
    floats = {port.name: outputs[port.name] for port in graph.outputs if port.name in outputs and port_is_float(port)}
    if callable(requested):
        return Loss("custom", tuple(outputs), -1, False, outputs, requested)
    if not floats:
        raise UsageError(
            "Expected a float output of one size for all samples to compute a loss from, found none. "
            "Prune with --criterion magnitude, or give a loss of your own from Python."
        )
    if requested in ("auto", "cross-entropy"):
        found = cross_entropy(floats, calibration)
        if found is not None:
            return found
        if requested == "cross-entropy":
            raise UsageError(missing_labels(floats, calibration))
    if requested == "kl" or (requested != "mse" and looks_like_logits(floats)):
        return kl(floats)
    return relative_error(floats)


def port_is_float(port: object) -> bool:
    return getattr(port, "element_type", 0) in FLOAT_TYPES


def cross_entropy(floats: Mapping[str, np.ndarray], calibration: Calibration) -> Loss | None:
    """Cross-entropy with the first output that the labels fit."""
    labels = calibration.labels
    if labels is None or labels.dtype.kind not in "iu":
        return None
    for name, values in floats.items():
        axis = class_axis(values.shape, labels.shape)
        if axis is None:
            continue
        classes = values.shape[axis]
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(
                f"Expected labels from 0 to {classes - 1} for output {name!r} of {classes} classes, "
                f"found {labels.min()} to {labels.max()}. Mend the labels."
            )
        one_hot = np.zeros(values.shape)
        np.put_along_axis(one_hot, np.expand_dims(labels, axis), 1.0, axis)
        targets = {"target": one_hot, "log_target": np.zeros_like(one_hot)}
        return Loss("cross-entropy", (name,), axis, are_probabilities(values, axis), targets)
    return None


def class_axis(output: Sequence[int], labels: Sequence[int]) -> int | None:
    """The axis of the output that the labels lack: the last, or the second as in segmentation."""
    for axis in (len(output) - 1, 1):
        rest = [size for number, size in enumerate(output) if number != axis]
        if len(output) > 1 and output[axis] > 1 and rest == list(labels):
            return axis
    return None


def missing_labels(floats: Mapping[str, np.ndarray], calibration: Calibration) -> str:
    """Why cross-entropy cannot be computed."""
    shapes = ", ".join(f"{name!r} {list(values.shape)}" for name, values in floats.items())
    if calibration.labels is None:
        return (
            "Cross-entropy needs labels, found none. Add an integer array 'labels' to the data, or name it: --labels."
        )
    found = f"{calibration.labels.dtype} {list(calibration.labels.shape)}"
    return (
        f"Cross-entropy needs integer labels, one class number per sample, that fit an output ({shapes}); "
        f"found labels {found}. Convert them with .astype or .argmax, or measure with --loss distance."
    )


def are_probabilities(values: np.ndarray, axis: int) -> bool:
    """Do the numbers lie in [0, 1] and add up to one over the classes?"""
    inside = bool((values >= 0).all() and (values <= 1 + 1e-5).all())
    return inside and bool(np.allclose(values.sum(axis, dtype=np.float64), 1, atol=1e-3))


def looks_like_logits(floats: Mapping[str, np.ndarray]) -> bool:
    """One output: probabilities, or a row of at least two numbers per sample, or named logits."""
    if len(floats) != 1:
        return False
    ((name, values),) = floats.items()
    if values.ndim < 2 or values.shape[-1] < 2:
        return False
    return values.ndim == 2 or "logits" in name.lower() or are_probabilities(values, values.ndim - 1)


def kl(floats: Mapping[str, np.ndarray]) -> Loss:
    """KL divergence from the original's own probabilities, over the last axis of the first output."""
    name, values = next(iter(floats.items()))
    if values.ndim < 2 or values.shape[-1] < 2:
        raise UsageError(f"KL needs probabilities or logits over at least two classes, found {name!r} {values.shape}.")
    axis = values.ndim - 1
    probabilities = are_probabilities(values, axis)
    precise = values.astype(np.float64)
    if probabilities:
        log_target = np.log(np.maximum(precise, SMALLEST_PROBABILITY))
    else:
        shifted = precise - precise.max(axis, keepdims=True)
        log_target = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    return Loss("kl", (name,), axis, probabilities, {"target": np.exp(log_target), "log_target": log_target})


def relative_error(floats: Mapping[str, np.ndarray]) -> Loss:
    """Squared distance to the original's outputs over their mean square, added over all float outputs."""
    precise = {name: values.astype(np.float64) for name, values in floats.items()}
    energies = {name: max(float(np.mean(np.square(values))), 1e-30) for name, values in precise.items()}
    targets = {f"reference.{name}": values for name, values in precise.items()}
    return Loss("mse", tuple(floats), -1, False, targets, energies=energies)


def user_losses(
    loss: Loss,
    every_target: Mapping[str, np.ndarray],
    found: Sequence[np.ndarray],
    samples: np.ndarray,
    labels: np.ndarray | None,
) -> np.ndarray:
    """What the user's function says of these samples; a single number counts for each of them."""
    assert loss.user is not None
    targets = {name: values[samples] for name, values in every_target.items()}
    given = None if labels is None else labels[samples]
    said = np.asarray(loss.user(dict(zip(loss.outputs, found, strict=True)), targets, given), np.float64)
    if said.size != 1 and said.shape != samples.shape:
        raise UsageError(
            f"Expected of the loss one number for each of {len(samples)} samples, or one in all, "
            f"found an array of shape {list(said.shape)}."
        )
    return np.broadcast_to(said.ravel(), samples.shape)
