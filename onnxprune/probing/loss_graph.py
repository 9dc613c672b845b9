"""The loss as nodes at the end of a graph: one number for each row, in double precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxprune.probing.calibration import Calibration
from onnxprune.probing.losses import SMALLEST_PROBABILITY, Loss, user_losses
from onnxprune.reading.observing import session_for

LOSS_OPSET = 17
"""In which a loss is written that is a model of its own."""

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR


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
