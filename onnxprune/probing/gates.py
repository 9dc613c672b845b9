"""
Gates: a vector of ones multiplied into every sink of a group.

A sink sums over an axis; with the gate of a channel at 0 the sum loses exactly the channel's term, which **is** the
channel's removal. The gates are extra inputs of one probing model::

    x ──────────────► Conv            x ──► Mul ──► Conv
                                  gate ──────┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto, ValueInfoProto

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.probing.losses import Loss, loss_in_graph
from onnxprune.reading.observing import session_for, without_weights
from onnxprune.rules.axes import Axis, Dim, leaves, spread
from onnxprune.rules.facts import Contracted

ELEMENT_TYPES: dict[str, int] = {
    "tensor(float16)": TensorProto.FLOAT16,
    "tensor(bfloat16)": TensorProto.BFLOAT16,
    "tensor(double)": TensorProto.DOUBLE,
}
"""Float types other than float32, as ONNX Runtime spells them."""


@dataclass(frozen=True, slots=True)
class Gate:
    """
    One gate input of the probing model: for axis number `axis` of tensor `tensor`, read at `uses`.

    `batch_axis` is the axis of the tensor that counts samples, None if there is no such axis.
    """

    name: str
    tensor: str
    axis: int
    type: Axis
    rank: int
    batch_axis: int | None
    uses: tuple[tuple[int, int], ...]

    def values(self, closed: Mapping[Dim, np.ndarray]) -> np.ndarray:
        """The gate's number for each position, given the gates of Dims; ones elsewhere."""
        return spread(self.type, lambda dim: closed.get(dim, np.ones(dim.size)))

    def feed(self, rows: np.ndarray) -> np.ndarray:
        """`[1 or rows, positions]` as the tensor's shape wants it."""
        shape = [1] * self.rank
        shape[self.axis] = rows.shape[1]
        if rows.shape[0] > 1:
            assert self.batch_axis is not None
            shape[self.batch_axis] = rows.shape[0]
        ordered = rows if self.batch_axis is None or self.batch_axis < self.axis else rows.T
        return np.ascontiguousarray(ordered.reshape(shape).astype(np.float32))


gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.ERROR  # it would warn on stdout of every name in a body


def gates_of(couplings: Couplings, dims: Iterable[Dim]) -> tuple[Gate, ...]:
    """One gate for each tensor axis that a sink of these Dims sums over."""
    wanted = set(dims)
    uses: dict[tuple[str, int], list[tuple[int, int]]] = {}
    axes: dict[tuple[str, int], tuple[Axis, ...]] = {}
    for op, fact in facts_where(couplings.typing, Contracted):
        resolved = couplings.typing.axes(fact.tensor)
        if wanted.isdisjoint(leaves(resolved[fact.axis])):
            continue
        index = next(number for number, tensor in enumerate(op.inputs) if tensor is fact.tensor)
        uses.setdefault((fact.tensor.name, fact.axis), []).append((op.node.position, index))
        axes[fact.tensor.name, fact.axis] = resolved
    return tuple(
        Gate(
            name=f"onnxprune.gate.{number}",
            tensor=tensor,
            axis=axis,
            type=types[axis],
            rank=len(types),
            batch_axis=batch_axis_of(types, couplings),
            uses=tuple(uses[tensor, axis]),
        )
        for number, ((tensor, axis), types) in enumerate(axes.items())
    )


def batch_axis_of(types: tuple[Axis, ...], couplings: Couplings) -> int | None:
    """The one axis that is just the samples."""
    found = [number for number, axis in enumerate(types) if isinstance(axis, Dim) and axis in couplings.batch]
    return found[0] if len(found) == 1 else None


def probing_model(model: ModelProto, gates: tuple[Gate, ...], loss: Loss) -> ModelProto:
    """The model with the gates at their sinks and the loss as its only output."""
    types = element_types(model, {gate.tensor for gate in gates})
    copy = ModelProto()
    copy.CopyFrom(model)  # graphsurgeon writes names into the tensors that it is given
    surgeon = gs.import_onnx(copy)
    originals = list(surgeon.nodes)
    tensors = surgeon.tensors()
    for gate in gates:
        source = tensors[gate.tensor]
        shape: list[int | str] = [1] * gate.rank
        if gate.batch_axis is not None:
            shape[gate.batch_axis] = f"{gate.name}.rows"
        shape[gate.axis] = gate.type.size
        opened = gs.Variable(gate.name, np.float32, shape)
        surgeon.inputs.append(opened)
        factor = opened
        if types[gate.tensor] != TensorProto.FLOAT:
            factor = gs.Variable(f"{gate.name}.cast")
            surgeon.nodes.append(gs.Node("Cast", factor.name, {"to": types[gate.tensor]}, [opened], [factor]))
        gated = gs.Variable(f"{gate.name}.gated")
        surgeon.nodes.append(gs.Node("Mul", gated.name, {}, [source, factor], [gated]))
        for position, index in gate.uses:
            originals[position].inputs[index] = gated
    surgeon.outputs = loss_in_graph(surgeon, loss)
    for output in surgeon.outputs:
        output.dtype, output.shape = output.dtype or np.float32, output.shape if loss.user else None
    surgeon.cleanup().toposort()
    exported: ModelProto = gs.export_onnx(surgeon, do_type_check=False)
    return exported


def element_types(model: ModelProto, names: Set[str]) -> dict[str, int]:
    """The ONNX element type of each of these tensors, as ONNX Runtime sees it; of one it does not, float32."""
    if not names:
        return {}
    structure = without_weights(model)
    made = {name for node in structure.graph.node for name in node.output}
    del structure.graph.output[:]
    structure.graph.output.extend(ValueInfoProto(name=name) for name in names if name in made)
    session = session_for(structure, optimized=False)
    said = {port.name: port.type for port in (*session.get_inputs(), *session.get_outputs())}
    return {name: ELEMENT_TYPES.get(said.get(name, ""), TensorProto.FLOAT) for name in names}
