"""
Layers that can be refitted: those whose output is a sum of products of their input with a constant, plus a bias.

    y = x · W + b        a matrix product, a convolution of any kernel, an einsum: the rules say which

Such a layer is linear in its weight, so the best weight for given inputs and wanted outputs is a least squares problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_in_main
from onnxprune.reading.graph import PRECISE_TYPES, Node
from onnxprune.rules.axes import Axis
from onnxprune.rules.facts import AllOf, Contracted, Equal, MayAdd, Standardized, Zero
from onnxprune.rules.operation import Op, Tensor

MOST_FEATURES = 8192
"""Layers of more features than that are left as they are: their normal equations would take gigabytes."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """
    One such layer, by the numbers of its inputs.

    `summed` is the axis of the weight that stands against the input's channels, `type` what both are; `made` is the
    axis of the weight that counts outputs, `made_at` the same axis of the output. `bias` is the input that holds one
    number for each output, of this node or of the addition behind it (`bias_node`); None where there is no bias.
    """

    node: Node
    data: int
    weight: int
    summed: int
    type: Axis
    made: int
    made_at: int
    bias_node: Node
    bias: int | None
    element_type: int
    room: int | None
    """Where there is no bias, the number of the input at which the node could read one."""

    @property
    def input(self) -> str:
        """The tensor that is read."""
        return self.node.inputs[self.data]

    @property
    def output(self) -> str:
        """The tensor that is made."""
        return self.node.outputs[0]


def consumers(couplings: Couplings) -> Iterator[Consumer]:
    """Every layer of the model that can be refitted."""
    for op, fact in facts_in_main(couplings.typing, Contracted):
        if fact.affine and fact.tensor.name not in couplings.graph.constants and len(op.results) == 1:
            yield from consumer_at(op, fact, couplings)


def consumer_at(op: Op, fact: Contracted, couplings: Couplings) -> Iterator[Consumer]:
    """The layer as a consumer, if its other operand is a constant with one axis for its outputs."""
    graph, axes = couplings.graph, couplings.typing.axes
    data = next(number for number, tensor in enumerate(op.inputs) if tensor is fact.tensor)
    summed_type = couplings.typing.solver.resolve(fact.sums)
    weights = [number for number, one in enumerate(op.inputs) if number != data and any(one is by for by in fact.by)]
    rest = [number for number, one in enumerate(op.inputs) if one is not None and number not in (data, *weights)]
    if len(weights) != 1 or any(op.node.inputs[number] not in graph.constants for number in (*weights, *rest)):
        return
    weight, output = op.inputs[weights[0]], op.results[0]
    assert weight is not None
    summed = summed_axes(op, fact, weight, couplings)
    made = [
        (number, at)
        for number, axis in enumerate(axes(weight))
        for at, other in enumerate(axes(output))
        if axis == other and number not in summed
    ]
    kinds = {graph.element_types.get(fact.tensor.name), graph.constants[weight.name].tensor.data_type}
    if len(summed) != 1 or len(made) != 1 or len(rest) > 1 or len(kinds) != 1 or not kinds <= PRECISE_TYPES:
        return
    ((along, at),) = made
    if math.prod(axis.size for number, axis in enumerate(axes(weight)) if number != along) > MOST_FEATURES:
        return
    bias_node, bias = (op.node, rest[0]) if rest else added_bias(output, at, couplings) or (op.node, None)
    element_type = graph.element_types[fact.tensor.name]
    room = room_for_bias(op, at, couplings)
    yield Consumer(op.node, data, weights[0], summed[0], summed_type, along, at, bias_node, bias, element_type, room)


def summed_axes(op: Op, fact: Contracted, weight: Tensor, couplings: Couplings) -> list[int]:
    """The axes of the weight that stand against the summed one; a layer may make the channels that it reads."""
    solver = couplings.typing.solver
    alike = [number for number, axis in enumerate(couplings.typing.axes(weight)) if axis == solver.resolve(fact.sums)]
    facts = couplings.typing.stated[op.node.position].facts
    stated = [{fact.left, fact.right} for fact in facts if isinstance(fact, Equal)]
    said = [number for number in alike if {fact.sums, weight[number]} in stated]
    return said or alike


def room_for_bias(op: Op, made_at: int, couplings: Couplings) -> int | None:
    """The number of the input at which a node that has no bias could read one for the axis of what it makes."""
    facts = couplings.typing.stated[op.node.position].facts
    return next((fact.place for fact in facts if isinstance(fact, MayAdd) and fact.axis == made_at), None)


def added_bias(output: Tensor, made_at: int, couplings: Couplings) -> tuple[Node, int] | None:
    """The node that alone reads the output and adds a constant of one number for each of its channels to it."""
    graph, typing = couplings.graph, couplings.typing
    readers = graph.readers.get(output.name, ())
    if len(readers) != 1 or any(port.name == output.name for port in graph.outputs):
        return None
    ((node, index),) = readers
    facts = typing.stated[node.position].facts
    shifted = next((fact.mean for fact in facts if isinstance(fact, Standardized) and fact.data == index), None)
    if shifted is not None:
        return (node, shifted) if made_at == 1 and node.inputs[shifted] in graph.constants else None
    others = [number for number, name in enumerate(node.inputs) if number != index and name]
    if len(others) != 1 or node.inputs[others[0]] not in graph.constants:
        return None
    constant = typing.at(node, others[0])
    assert constant is not None
    wide = [axis for axis in typing.axes(constant) if axis.size > 1]
    adds = any(isinstance(fact, Zero) and isinstance(fact.when, AllOf) for fact in facts)
    return (node, others[0]) if adds and wide == [typing.axes(output)[made_at]] else None
