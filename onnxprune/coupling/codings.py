"""What the numbers of quantised tensors stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.types import Stated, Typing, Use, facts_where
from onnxprune.reading.graph import Graph
from onnxprune.rules.facts import Quantized, Zero
from onnxprune.rules.operation import Tensor


@dataclass(frozen=True, slots=True)
class Level:
    """What stands for zero: `number` everywhere, or those of the tensor `point`, several along `axis` where given."""

    number: float = 0
    point: str = ""
    axis: int | None = None

    def numbers(self, graph: Graph, shape: tuple[int, ...]) -> np.ndarray:
        """For each number of a tensor of that shape, what stands for zero; `point` must be a constant."""
        numbers = graph.constants[self.point].array() if self.point else np.array(self.number)
        return along(numbers, shape, self.axis or 0)


PLAIN = Level()
"""Zero is zero."""


@dataclass(frozen=True, slots=True)
class Coding:
    """
    The numbers of a constant stand for `scale` · (number - level); a scale that is not known has no name.

    With `bits` a byte of the last axis holds several numbers, which lie around the middle of their range.
    """

    level: Level
    scale: str
    axis: int
    bits: int | None = None

    def decoded(self, numbers: np.ndarray, graph: Graph) -> np.ndarray:
        """What the numbers stand for."""
        if self.bits:
            scales = graph.constants[self.scale].array().astype(np.float64)
            return np.asarray(unpacked(numbers, self.bits) * scales.reshape(*numbers.shape[:-1], 1))
        apart = numbers.astype(np.float64) - self.level.numbers(graph, numbers.shape).astype(np.float64)
        return apart * along(graph.constants[self.scale].array(), apart.shape, self.axis) if self.scale else apart


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """The numbers in the bytes of the last axis, around the middle of their range."""
    shifts = np.arange(0, 8, bits)
    numbers = (packed[..., None].astype(np.int64) >> shifts) & (2**bits - 1)
    return np.asarray(numbers.reshape(*packed.shape[:-1], -1) - 2.0 ** (bits - 1))


def along(numbers: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Scales or zero points of a tensor of that shape, for each of its numbers."""
    numbers = numbers.astype(np.float64)
    if numbers.size == 1:
        return np.broadcast_to(numbers.reshape(()), shape)
    if numbers.ndim < len(shape):
        return np.broadcast_to(numbers.reshape([-1 if number == axis else 1 for number in range(len(shape))]), shape)
    block = -(-shape[axis] // numbers.shape[axis])
    return np.take(np.repeat(numbers, block, axis), range(shape[axis]), axis)


def level_of(fact: Quantized, graph: Graph) -> Level:
    """What stands for zero there, as a number if it is the same everywhere."""
    if fact.point is None or fact.bits:
        return PLAIN
    constant = graph.constants.get(fact.point.name)
    if constant is None:
        return Level(point=fact.point.name, axis=None if math.prod(fact.point.shape) == 1 else fact.axis)
    numbers = constant.array().astype(np.float64)
    first = float(numbers.flat[0]) if numbers.size else 0.0
    return Level(first) if (numbers == first).all() else Level(point=constant.name, axis=fact.axis)


def codings_of(graph: Graph, typing: Typing) -> dict[Use, Coding]:
    """How constants are coded, by the uses that say so: where they are read, or behind nodes that move numbers."""
    found: dict[Use, Coding] = {}
    for op, fact in facts_where(typing, Quantized):
        if not any(fact.tensor is tensor for tensor in op.inputs):
            continue
        level, scale = level_of(fact, graph), known_scale(fact, graph)
        use = op.node.position, op.inputs.index(fact.tensor)
        if fact.tensor.name in graph.constants:
            if not level.point or level.point in graph.constants:
                found.setdefault(use, Coding(level, scale, fact.axis, fact.bits))
        elif not level.point:
            one = scale if scale and graph.constants[scale].size == 1 else ""
            for behind in uses_behind(use, graph, typing):
                found.setdefault(behind, Coding(level, one, 0))
    return found


def known_scale(fact: Quantized, graph: Graph) -> str:
    """The constant that is the scale, if it is one."""
    return fact.scale.name if fact.scale is not None and fact.scale.name in graph.constants else ""


def uses_behind(use: Use, graph: Graph, typing: Typing) -> Iterator[Use]:
    """The use of a constant whose numbers are read here, moved about or not."""
    position, index = use
    name = graph.nodes[position].inputs[index]
    if name in graph.constants:
        yield use
    elif name in typing.knowable:
        maker = typing.stated[graph.makers[name].position]
        for source in moved_to(name, maker):
            yield from uses_behind((maker.op.node.position, maker.op.inputs.index(source)), graph, typing)


def moved_to(name: str, maker: Stated) -> Iterator[Tensor]:
    """The input whose numbers the tensor of that name holds."""
    for fact in maker.facts:
        if isinstance(fact, Zero) and fact.output.name == name and fact.moved and isinstance(fact.when, Tensor):
            yield fact.when
