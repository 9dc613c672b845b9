"""
The model in masked form: it computes the same, but what sums or averages over a group counts given positions.

Zeroing a position of all initializers takes it neither out of a mean nor out of a sum to which it still brings
something. So there the model gets a constant of ones, one for each position, as a mask::

    sum of x     becomes   sum of x · mask
    mean of x    becomes   sum of x · mask / sum of mask
    x / y        becomes   x / (y + 1 - mask)                where y would be zero

The mask goes with the group like any other constant. With zeros in it the model computes what it would without these
positions: to zero is to remove, and all that holds for exact groups holds for these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper

from onnxprune.coupling.types import Stated, Typing
from onnxprune.coupling.zeros import Leak
from onnxprune.reading.graph import FLOAT_TYPES, PRECISE_TYPES, Graph, fresh_name
from onnxprune.rules.axes import Axis, Dim, leaves
from onnxprune.rules.facts import Averaged, Contracted, Divisor, Normalized
from onnxprune.rules.operation import Op, Tensor

AXES_ARE_AN_INPUT = {"ReduceSum": 13, "ReduceMean": 18}
"""The opset from which the operator takes its axes as an input, no longer as an attribute."""

STATISTICS = frozenset({1, 2})
"""The outputs of a norm that tell a mean and a deviation."""


def masked_model(graph: Graph, typing: Typing, leaks: Iterable[Leak], dims: Set[Dim]) -> ModelProto:
    """The model with a mask wherever it sums or averages over these Dims; all its tensors are still there."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    nodes = Writer(graph, typing, leaks, dims).written(node.position for node in graph.main)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class Writer:
    """Writes one node after the other, those that sum or average over some of these Dims in masked form."""

    def __init__(self, graph: Graph, typing: Typing, leaks: Iterable[Leak], dims: Set[Dim]) -> None:
        self._graph, self._typing, self._dims = graph, typing, dims
        self._leaks = [leak for leak in leaks if not dims.isdisjoint(leak.dims)]  # not those along a dynamic axis
        self._nodes: list[NodeProto] = []
        self._taken = set(graph.names)

    def written(self, positions: Iterable[int]) -> list[NodeProto]:
        """The nodes at these positions, each behind what it needs, and so in their bodies."""
        outer, self._nodes = self._nodes, []
        for position in positions:
            self._write(self._typing.stated[position])
        nodes, self._nodes = self._nodes, outer
        return nodes

    def _write(self, one: Stated) -> None:
        position = one.op.node.position
        leaks = [leak for leak in self._leaks if leak.op.node.position == position]
        for fact in one.facts:
            if isinstance(fact, Normalized) and (leaks or self._is_masked(fact, one.op)):
                self._normalize(fact, one.op)
                return
        node = NodeProto()
        node.CopyFrom(self._graph.protos[position])
        for body in self._graph.bodies.get(position, ()):
            held = next(attribute.g for attribute in node.attribute if attribute.name == body.attribute)
            nodes = self.written(body.nodes)
            del held.node[:]
            held.node.extend(nodes)
        for leak in leaks:
            index = index_of(leak.fact.tensor, one.op)
            node.input[index] = self._closed(leak.fact, node.input[index])
        for fact in one.facts:
            if isinstance(fact, Averaged) and self._counts(fact.tensor[fact.axis]):
                index = index_of(fact.tensor, one.op)
                exact = self._precise(node.input[index], fact.tensor)
                node.input[index] = self._like(self._mean(exact, fact.tensor, fact.axis), fact.tensor)
        self._nodes.append(node)

    # What is masked.

    def _counts(self, axis: Axis) -> bool:
        """Do any of the Dims stand in the axis?"""
        return not self._dims.isdisjoint(leaves(self._typing.solver.resolve(axis)))

    def _is_masked(self, fact: Normalized, op: Op) -> bool:
        x = op.input(fact.added[0])
        averaged = [*(x[number] for number in fact.over), *([fact.within] if fact.within else [])]
        told = {number for number, output in enumerate(op.outputs) if output is not None}
        return any(map(self._counts, averaged)) and (fact.centred or told.isdisjoint(STATISTICS))

    # Sums and divisors.

    def _closed(self, fact: Contracted | Divisor, source: str) -> str:
        """What a leak reads, with nothing in positions that the mask leaves out; a divisor is one there."""
        tensor, element = fact.tensor, self._element(fact.tensor)
        if element not in FLOAT_TYPES:
            return source
        if isinstance(fact, Contracted):
            return self._say("Mul", source, self._mask(tensor[fact.axis].size, tensor.rank - fact.axis, element))
        for number, axis in enumerate(tensor.axes):
            if self._counts(axis):
                mask = self._mask(axis.size, tensor.rank - number, element)
                source = self._say("Add", source, self._say("Sub", self._numbers([1.0], (), element), mask))
        return source

    # Means.

    def _mean(self, x: str, tensor: Tensor, number: int) -> str:
        """The mean over an axis that is masked."""
        return self._share(x, tensor[number].size, tensor.rank, number, self._wide(tensor))

    def _share(self, x: str, size: int, rank: int, number: int, element: int) -> str:
        """Sum of x · mask over axis `number`, which stays as one position, by the sum of the mask."""
        mask = self._mask(size, rank - number, element)
        total = self._reduce("ReduceSum", self._say("Mul", x, mask), [number])
        return self._say("Div", total, self._say("ReduceSum", mask, keepdims=0))

    def _means(self, x: str, fact: Normalized, tensor: Tensor) -> str:
        """The means of a norm, which broadcast to what it normalizes."""
        plain = [number for number in fact.over if not self._counts(tensor[number])]
        for number in fact.over:
            x = x if number in plain else self._mean(x, tensor, number)
        x = self._reduce("ReduceMean", x, plain) if plain else x
        if fact.within is None or fact.within.size == 1:
            return x
        rows = self._say("Reshape", x, self._sizes(0, tensor[1].size // fact.within.size, -1))
        return self._channels(self._share(rows, fact.within.size, 3, 2, self._wide(tensor)), fact.within, tensor)

    def _channels(self, rows: str, within: Axis, tensor: Tensor) -> str:
        """One number for each block of axis 1, `[n, blocks, 1]`, as one for each of its channels."""
        spread = self._say("Mul", rows, self._mask(within.size, 1, self._wide(tensor)))
        return self._say("Reshape", spread, self._sizes(0, -1, *[1] * (tensor.rank - 2)))

    # Norms.

    def _normalize(self, fact: Normalized, op: Op) -> None:
        """A norm as the plain operators that it consists of."""
        tensor = op.input(fact.added[0])
        names = dict(enumerate(op.node.outputs))
        x = op.node.inputs[fact.added[0]]
        for number in fact.added[1:]:
            x = self._say("Add", x, op.node.inputs[number])
        whole = self._precise(x, tensor)
        mean = self._means(whole, fact, tensor) if fact.centred else ""
        centred = self._say("Sub", whole, mean) if mean else whole
        variance = self._means(self._say("Mul", centred, centred), fact, tensor)
        padded = self._say("Add", variance, self._numbers([fact.epsilon], (), self._wide(tensor)))
        deviation = self._say("Sqrt", padded)
        result = self._say("Div", centred, deviation)
        for op_type, factor in (("Mul", fact.scale), ("Add", fact.shift)):
            if factor is not None:
                result = self._say(op_type, result, self._factor(fact, op.input(factor), tensor))
        self._name(names.get(0), self._like(result, tensor))
        self._name(names.get(1), mean)
        self._name(names.get(2), self._say("Reciprocal", deviation) if names.get(2) else "")
        self._name(names.get(3), x)

    def _factor(self, fact: Normalized, factor: Tensor, tensor: Tensor) -> str:
        """Scale or shift, as it broadcasts to what is normalized."""
        numbers = self._precise(factor.name, factor)
        if fact.within is None:
            return numbers
        if factor[0].size == tensor[1].size:
            return self._say("Reshape", numbers, self._sizes(-1, *[1] * (tensor.rank - 2)))
        return self._channels(self._say("Reshape", numbers, self._sizes(1, -1, 1)), fact.within, tensor)

    # Nodes.

    def _say(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """One more node; the name of its output."""
        name = fresh_name(f"masked.{len(self._taken)}", self._taken)
        self._nodes.append(helper.make_node(op_type, list(inputs), [name], name, **attributes))
        return name

    def _name(self, name: str | None, source: str) -> None:
        """Give a tensor the name that others read it by."""
        if name:
            self._nodes.append(helper.make_node("Identity", [source], [name], name))

    def _reduce(self, op_type: str, x: str, axes: Sequence[int]) -> str:
        """Reduced over these axes, each of which stays as one position."""
        if self._graph.opsets[""] >= AXES_ARE_AN_INPUT[op_type]:
            return self._say(op_type, x, self._sizes(*axes), keepdims=1)
        return self._say(op_type, x, axes=list(axes), keepdims=1)

    def _mask(self, size: int, rank: int, element: int) -> str:
        """Ones along the first of so many axes. They pass through a node, so that all who read them share a type."""
        return self._say("Identity", self._numbers([1.0] * size, (size, *[1] * (rank - 1)), element))

    def _numbers(self, numbers: Sequence[float], shape: Sequence[int], element: int) -> str:
        return self._say("Constant", value=helper.make_tensor("", element, shape, numbers))

    def _sizes(self, *sizes: int) -> str:
        return self._numbers(sizes, (len(sizes),), TensorProto.INT64)

    def _element(self, tensor: Tensor) -> int:
        constant = self._graph.constants.get(tensor.name)
        return constant.tensor.data_type if constant else self._graph.element_types[tensor.name]

    def _wide(self, tensor: Tensor) -> int:
        """The element type to compute a mean in."""
        element = self._element(tensor)
        return element if element in PRECISE_TYPES else int(TensorProto.FLOAT)

    def _precise(self, name: str, tensor: Tensor) -> str:
        """What means are computed of, in a type that is fit for it."""
        return name if self._element(tensor) in PRECISE_TYPES else self._say("Cast", name, to=TensorProto.FLOAT)

    def _like(self, name: str, tensor: Tensor) -> str:
        """A result in the tensor's own type."""
        element = self._element(tensor)
        return name if element in PRECISE_TYPES else self._say("Cast", name, to=element)


def index_of(tensor: Tensor, op: Op) -> int:
    """The number of the input that the rule speaks of."""
    return next(number for number, source in enumerate(op.inputs) if source is tensor)
