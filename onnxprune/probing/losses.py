"""
The loss that is probed: one number per sample, computed inside the graph.

Cross-entropy and KL share one form, the sum over classes of t · (log t - log p): for KL, t are the original model's own
probabilities; for cross-entropy, t is one at the label and log t is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.errors import DataError, UsageError
from onnxprune.probing.calibration import Calibration, first_line
from onnxprune.reading.graph import FLOAT_TYPES, Graph
from onnxprune.reading.observing import Session, session_for

LossName = Literal["distance", "auto", "cross-entropy", "mse", "kl"]
UserLoss = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray], np.ndarray | None], np.ndarray | float]
"""Called with outputs, the original's outputs and labels of some samples; returns a number for each, or one for all."""

SMALLEST_PROBABILITY = 1e-12
LOSS_OPSET = 17
"""In which a loss is written that is a model of its own."""

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR


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
    for samples in calibration.batches(batch):
        try:
            found = session.run(names, calibration.at(calibration.filled(samples)))
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


@dataclass(frozen=True)
class Ending:
    """
    The loss as the end of a graph: nodes that read the loss's outputs, their constants and further inputs with their
    element types, and what they end in: one number per row, or for a user's loss the outputs as they are.
    """

    nodes: tuple[NodeProto, ...]
    constants: tuple[TensorProto, ...]
    inputs: Mapping[str, int]
    outputs: tuple[str, ...]


def loss_nodes(loss: Loss, opset: int) -> Ending:
    """
    The loss, in the words of this opset.

    All of it is in double precision: channels that hardly matter change the loss by less than a float32 can show.
    """
    if loss.user is not None:
        return Ending((), (), {}, loss.outputs)
    surgeon = gs.Graph(opset=opset)
    outputs = {name: gs.Variable(name) for name in loss.outputs}
    if loss.name == "mse":
        last = squared_error(surgeon, loss, outputs)
    else:
        last = divergence(surgeon, loss, as_double(surgeon, outputs[loss.outputs[0]]))
    last.dtype = np.dtype(np.float64)
    surgeon.outputs = [last]
    graph = gs.export_onnx(surgeon, do_type_check=False).graph
    inputs = {target_name(name): int(TensorProto.DOUBLE) for name in loss.targets}
    return Ending(tuple(graph.node), tuple(graph.initializer), inputs, (last.name,))


def losses_from(loss: Loss, outputs: Mapping[str, np.ndarray], calibration: Calibration) -> np.ndarray:
    """Loss of each sample `[samples]`, from a model's outputs `[samples, ...]`."""
    if loss.user is not None:
        found = [outputs[name] for name in loss.outputs]
        return user_losses(loss, loss.targets, found, np.arange(len(calibration)), calibration.labels)
    ending = loss_nodes(loss, LOSS_OPSET)
    model = ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", LOSS_OPSET)])
    model.graph.name = "loss"
    types = {name: helper.np_dtype_to_tensor_dtype(outputs[name].dtype) for name in loss.outputs} | dict(ending.inputs)
    model.graph.input.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in types.items())
    model.graph.output.extend(ValueInfoProto(name=name) for name in ending.outputs)
    model.graph.node.extend(ending.nodes)
    model.graph.initializer.extend(ending.constants)
    feeds = {name: outputs[name] for name in loss.outputs}
    feeds |= {target_name(name): values for name, values in loss.targets.items()}
    session = session_for(model)
    portions = [samples[0] if loss.stacked else samples for samples in calibration.batches(64)]
    found = [
        session.run(None, {name: np.asarray(values[each]) for name, values in feeds.items()})[0] for each in portions
    ]
    return np.concatenate(found)


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


def target_name(name: str) -> str:
    """The input of the probing model that takes this target."""
    return f"onnxprune.{name}"


def divergence(surgeon: gs.Graph, loss: Loss, output: gs.Variable) -> gs.Variable:
    """The sum over classes of t · (log t - log p), a mean over everything else of a row."""
    target, log_target = (gs.Variable(target_name(name)) for name in ("target", "log_target"))
    axis = loss.class_axis - 1 if loss.stacked else loss.class_axis
    log_p = log_probabilities(surgeon, output, axis, probabilities=loss.probabilities)
    terms = layer(surgeon, "Mul", [target, layer(surgeon, "Sub", [log_target, log_p])])
    return per_row(surgeon, reduced(surgeon, "ReduceSum", terms, [axis], keep=False), loss)


def squared_error(surgeon: gs.Graph, loss: Loss, outputs: Mapping[str, gs.Variable]) -> gs.Variable:
    """Each output's squared error per row over its mean square, added up."""
    total: gs.Variable | None = None
    for name in loss.outputs:
        wanted = gs.Variable(target_name(f"reference.{name}"))
        error = layer(surgeon, "Sub", [as_double(surgeon, outputs[name]), wanted])
        row = per_row(surgeon, layer(surgeon, "Mul", [error, error]), loss)
        row = layer(surgeon, "Div", [row, np.array(loss.energies[name])])
        total = row if total is None else layer(surgeon, "Add", [total, row])
    assert total is not None
    return total


def log_probabilities(surgeon: gs.Graph, output: gs.Variable, axis: int, *, probabilities: bool) -> gs.Variable:
    """Log of the class probabilities, of logits or of probabilities."""
    if probabilities:
        return layer(surgeon, "Log", [layer(surgeon, "Max", [output, np.array(SMALLEST_PROBABILITY)])])
    highest = reduced(surgeon, "ReduceMax", output, [axis], keep=True)
    shifted = layer(surgeon, "Sub", [output, highest])
    total = reduced(surgeon, "ReduceSum", layer(surgeon, "Exp", [shifted]), [axis], keep=True)
    return layer(surgeon, "Sub", [shifted, layer(surgeon, "Log", [total])])


def per_row(surgeon: gs.Graph, values: gs.Variable, loss: Loss) -> gs.Variable:
    """The mean over everything but the samples: one number for each, or one in all for a stacked sample."""
    flat = layer(surgeon, "Reshape", [values, np.array([1 if loss.stacked else 0, -1], np.int64)])
    return reduced(surgeon, "ReduceMean", flat, [1], keep=False)


AXES_ARE_INPUTS_FROM = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMean": 18}


def reduced(surgeon: gs.Graph, op_type: str, values: gs.Variable, axes: list[int], *, keep: bool) -> gs.Variable:
    """A reduction, spelled as the graph's opset wants it."""
    if surgeon.opset >= AXES_ARE_INPUTS_FROM[op_type]:
        return layer(surgeon, op_type, [values, np.array(axes, np.int64)], keepdims=int(keep))
    return layer(surgeon, op_type, [values], axes=axes, keepdims=int(keep))


def as_double(surgeon: gs.Graph, values: gs.Variable) -> gs.Variable:
    """The values as float64."""
    return layer(surgeon, "Cast", [values], to=int(TensorProto.DOUBLE))


def layer(surgeon: gs.Graph, op_type: str, inputs: list[gs.Variable | np.ndarray], **attributes: object) -> gs.Variable:
    """One more node; its only output."""
    number = len(surgeon.nodes)
    named = [
        gs.Constant(f"onnxprune.constant.{number}.{index}", np.asarray(value))
        if isinstance(value, np.ndarray | np.generic)
        else value
        for index, value in enumerate(inputs)
    ]
    output = gs.Variable(f"onnxprune.{op_type}.{number}")
    surgeon.nodes.append(gs.Node(op_type, f"onnxprune.{op_type}.{number}", attributes, named, [output]))
    return output
