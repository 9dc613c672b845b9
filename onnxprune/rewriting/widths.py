"""The sizes of one rewriting: what they were, and what they become."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.reading.graph import Graph
from onnxprune.rules.axes import Axis, Dim, leaves, width
from onnxprune.rules.facts import Copied, Measured
from onnxprune.rules.operation import Tensor


class Sizes:
    """New widths of Dims, axes and tensors, and which tensors only compute with shapes."""

    def __init__(self, couplings: Couplings, kept: Kept) -> None:
        self.couplings = couplings
        self.graph: Graph = couplings.graph
        self.widths: dict[Dim, int] = {dim: len(stay) for dim, stay in kept.items()}
        self.measured = {fact.output.name: fact for _, fact in facts_where(couplings.typing, Measured)}
        self.copied = {fact.output.name: fact for _, fact in facts_where(couplings.typing, Copied)}
        self.computed = frozenset(self._computed())

    def _computed(self) -> Iterator[str]:
        """Tensors computed from constants and shapes alone, without anything that loses positions."""
        for one in self.couplings.typing.stated:
            outputs = [name for name in one.op.node.outputs if name]
            follow = all(name in self.couplings.typing.knowable for name in outputs)
            measures = any(name in self.measured for name in outputs)
            involved = one.op.results if measures else (*one.op.tensors, *one.op.results)
            if follow and not any(self.shrinks(tensor) for tensor in involved):
                yield from (name for name in outputs if name not in self.graph.constants)

    def shrinks(self, tensor: Tensor) -> bool:
        """Does the tensor lose positions?"""
        return any(leaf in self.widths for axis in self.couplings.typing.axes(tensor) for leaf in leaves(axis))

    def new_shape(self, name: str) -> tuple[int, ...] | None:
        """The tensor's new shape at the first setting; None where it stays."""
        tensor = self.couplings.typing.tensors.get(name)
        if name in self.graph.constants:
            tensor = self.couplings.constant_uses(name)[0][1]
        if tensor is None or not self.shrinks(tensor):
            return None
        return tuple(width(axis, self.widths) for axis in self.couplings.typing.axes(tensor))

    def new_width(self, axis: Axis) -> int:
        """The width of an axis after pruning."""
        return width(self.couplings.typing.solver.resolve(axis), self.widths)

    def factor(self, axis: Axis) -> Fraction:
        """New width over old width."""
        return Fraction(self.new_width(axis), max(axis.size, 1))
