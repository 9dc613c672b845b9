"""What a product of two computed operands is made of in both models, seen from runs on samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_in_main
from onnxprune.probing.calibration import Calibration
from onnxprune.reading.graph import Node
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.factors import Layer, Operand, Side, Wide, side_of
from onnxprune.repairing.mixes import Meeting, joined
from onnxprune.repairing.rows import HELD_OUT, MOST_NUMBERS, fed, samples_at_a_time
from onnxprune.repairing.selections import Between, Selection, selection_of
from onnxprune.repairing.wanted import rows_a_sample
from onnxprune.rules.facts import Contracted

MOST_SAMPLES = 256
"""Samples whose products are looked at, the first ones: each has a whole matrix of them for every head."""

TOLERANCE = 1e-3
"""Of the product as it is understood here, relative to its largest number."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Product:
    """A node that multiplies two computed operands."""

    couplings: Couplings
    node: Node
    operands: tuple[Operand, Operand]

    def made_by(self, output: str) -> list[str]:
        """The operands that a layer makes."""
        return [operand.tensor for operand in self.operands if operand.layer.output == output]

    def is_plain(self, values: Arrays, stack: tuple[int, ...]) -> bool:
        """Is the result nothing but the rows of one operand times those of the other?"""
        q, k = (operand.matrices(values[operand.tensor], stack) for operand in self.operands)
        made, found = q @ k.transpose(0, 2, 1), values[self.node.outputs[0]]
        close = TOLERANCE * max(float(np.abs(found).max(initial=0)), 1e-30)
        return made.size == found.size and bool((np.abs(made.ravel() - found.ravel()) <= close).all())


class Runs:
    """Both models on samples, as far as the product, and from the layers that make its operands to the operands."""

    def __init__(
        self, product: Product, layers: Mapping[str, Layer], model: ModelProto, samples: Calibration, threads: int
    ) -> None:
        self.product, self.layers, self._samples = product, layers, samples.first(MOST_SAMPLES)
        graph, rows = product.couplings.graph, rows_a_sample(product.operands[0].layer, product.couplings.graph)
        self._size = max(1, min(samples_at_a_time(rows, rows), len(self._samples) // HELD_OUT))
        tensors = [operand.tensor for operand in product.operands]
        inputs = [layer.consumer.input for layer in layers.values()]
        self._teacher = session_for(up_to(graph.model, [*tensors, *layers, product.node.outputs[0]]), threads=threads)
        self._student = session_for(up_to(model, [*tensors, *layers, *inputs]), threads=threads)
        self.elsewhere = {output: sums_behind(product.couplings, output, product.node) for output in layers}
        self.between, self.between_now = (
            {
                output: Between(one, output, self._behind(output, one is model), layer.consumer.element_type, threads)
                for output, layer in layers.items()
            }
            for one in (graph.model, model)
        )

    def _behind(self, output: str, is_pruned: bool) -> list[str]:
        """What is looked at behind a layer."""
        return [*self.product.made_by(output), *(self.elsewhere[output] if is_pruned else ())]

    def share(self, most: int) -> int:
        """How many of so many each batch may have, one at least."""
        return max(1, most * self._size // len(self._samples))

    def batches(self) -> Iterator[tuple[Arrays, Arrays, Arrays]]:
        """What is fed, and what the original and the pruned model make; all batches have the size of the first."""
        shapes: list[tuple[int, ...]] = []
        for batch in self._samples.batches(self._size):
            feed = self._samples.at(self._samples.filled(batch))
            found = [array.shape for array in feed.values()]
            shapes = shapes or found
            if found == shapes:
                yield feed, outputs_by_name(self._teacher, feed), outputs_by_name(self._student, feed)


def outputs_by_name(session: Session, feed: Arrays) -> Arrays:
    """What the session makes of the feed."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed(session, feed)), strict=True))


@dataclass(frozen=True)
class Sides:
    """The sides of a product: their stack in the original, that of the pruned model, and its places in the former."""

    sides: tuple[Side, Side]
    stack: tuple[int, ...]
    stack_now: tuple[int, ...]
    stays: np.ndarray


def sides_of(runs: Runs) -> Sides | None:
    """The sides of a product; None if it is not plain, or if its operands are more than columns that only it reads."""
    product = runs.product
    feed, was, now = next(runs.batches())
    whole = selections(product, runs.between, was, feed)
    left = selections(product, runs.between_now, now, feed)
    if whole is None or left is None:
        return None
    stack, stack_now = stack_of(whole), stack_of(left)
    if not product.is_plain(was, stack):
        return None
    whole, left = [one.spread(stack) for one in whole], [one.spread(stack_now) for one in left]
    layers = [runs.layers[operand.layer.output] for operand in product.operands]
    there = [np.isin(one.columns, layer.kept).any(1) for one, layer in zip(whole, layers, strict=True)]
    stays = np.flatnonzero(there[0] & there[1])
    if len(stays) != len(left[0].columns) or not len(stays):
        return None
    every = zip(product.operands, layers, whole, left, strict=True)
    one, other = (side_of(operand, layer, wide.at(stays), rest) for operand, layer, wide, rest in every)
    if one is None or other is None or are_read_elsewhere(runs, (one, other), feed, now):
        return None
    return Sides((one, other), stack, stack_now, stays)


def selections(
    product: Product, between: Mapping[str, Between], values: Arrays, feed: Arrays
) -> list[Selection] | None:
    """Which columns of their layers the operands are; None if one is more than that."""
    found = []
    for operand in product.operands:
        layer, output = operand.layer, operand.layer.output
        selected = selection_of(between[output], operand.tensor, operand.axis, values[output], layer.made_at, feed)
        if selected is None:
            return None
        found.append(selected)
    return found


def stack_of(selected: Sequence[Selection]) -> tuple[int, ...]:
    """The stack that all of them broadcast to."""
    return np.broadcast_shapes(*(one.columns.shape[:-1] for one in selected))


def sums_behind(couplings: Couplings, output: str, product: Node) -> tuple[str, ...]:
    """What a layer's output becomes, elsewhere than in the product, where it is summed over or leaves the model."""
    graph = couplings.graph
    sums = {op.node.position for op, _ in facts_in_main(couplings.typing, Contracted)}
    leaving = {*graph.captured, *(port.name for port in graph.outputs)}
    pending, found = {output: None}, dict[str, None]()
    for name in iter_growing(pending):
        readers = [node for node, _ in graph.readers.get(name, ()) if node.position != product.position]
        if name in leaving or any(node.position in sums for node in readers):
            found[name] = None
        made = (made for node in readers if node.position not in sums for made in node.outputs if made)
        pending.update(dict.fromkeys(made))
    return tuple(found)


def iter_growing(names: Mapping[str, None]) -> Iterator[str]:
    """Each name once, those too that come in on the way."""
    done = 0
    while done < len(names):
        for name in list(names)[done:]:
            done += 1
            yield name


def are_read_elsewhere(runs: Runs, sides: tuple[Side, Side], feed: Arrays, now: Arrays) -> bool:
    """Do the sides' columns go anywhere but once into the product? Other numbers are put into them to see."""
    for output, layer in runs.layers.items():
        blocks = [block for side in sides if side.layer is layer for block in side.blocks]
        columns = np.concatenate([block.now.columns for block in blocks])
        if len(np.unique(columns)) < len(columns):
            return True
        other = np.moveaxis(now[output].copy(), layer.consumer.made_at, -1)
        other[..., columns] = np.random.default_rng(0).standard_normal(other[..., columns].shape)
        changed = np.ascontiguousarray(np.moveaxis(other, -1, layer.consumer.made_at))
        one, two = (runs.between_now[output].of(array, feed) for array in (now[output], changed))
        if any(not np.array_equal(one[name], two[name], equal_nan=True) for name in runs.elsewhere[output]):
            return True
    return False


def meetings_of(runs: Runs, sides: Sides, wide: Mapping[str, Wide]) -> tuple[list[Meeting], list[Meeting]]:
    """Which blocks meet, and what the equations need to know of it: of most samples, and of those held out."""
    left, right = (side.numbers for side in sides.sides)
    pairs = sorted(set(zip(left.tolist(), right.tolist(), strict=True)))
    places = [np.flatnonzero((left == one) & (right == other)) for one, other in pairs]
    numbers = sum(len(side.blocks[0].stays) ** 2 for side in sides.sides)
    most = runs.share(MOST_NUMBERS // (numbers * len(pairs)))
    parts: tuple[list[list[Meeting]], ...] = ([[] for _ in pairs], [[] for _ in pairs])
    rng = np.random.default_rng(0)
    for number, (feed, was, now) in enumerate(runs.batches()):
        matrices = Matrices.of(runs, sides, wide, (feed, was, now))
        for found, pair, where in zip(parts[number % HELD_OUT == HELD_OUT - 1], pairs, places, strict=True):
            found.append(matrices.meeting(pair, rng.permutation(where)[:most]))
    fitted, held_out = ([joined(found) for found in part if found] for part in parts)
    return fitted, held_out


@dataclass(frozen=True)
class Matrices:
    """Of one batch, for both sides: columns that could be made, the operands wanted, and those made now."""

    known: tuple[np.ndarray, np.ndarray]
    wanted: tuple[np.ndarray, np.ndarray]
    made: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, runs: Runs, sides: Sides, wide: Mapping[str, Wide], batch: tuple[Arrays, Arrays, Arrays]) -> Matrices:
        """From what both models make of a batch."""
        feed, was, now = batch
        possible: dict[str, np.ndarray] = {}
        for output, layer in runs.layers.items():
            possible |= runs.between[output].of(wide[output].outputs(now[layer.consumer.input]), feed)
        one, other = sides.sides
        return cls(
            (known(one, possible, sides), known(other, possible, sides)),
            (wanted(one, was, sides), wanted(other, was, sides)),
            (made(one, now, sides), made(other, now, sides)),
        )

    def meeting(self, pair: tuple[int, int], places: np.ndarray) -> Meeting:
        """What the equations need to know of these places of the stack."""
        both = ((one[places], other[places]) for one, other in (self.known, self.wanted, self.made))
        return Meeting.of(pair, *both)


def known(side: Side, possible: Arrays, sides: Sides) -> np.ndarray:
    """All columns that the layer could make, and the constant."""
    offsets = np.stack([block.whole.offset for block in side.blocks])[side.numbers]
    found = side.operand.matrices(possible[side.operand.tensor], sides.stack)[sides.stays] - offsets[:, None]
    return np.concatenate([found, np.ones((*found.shape[:2], 1))], axis=2)


def wanted(side: Side, was: Arrays, sides: Sides) -> np.ndarray:
    """The operand in the original."""
    return np.asarray(side.operand.matrices(was[side.operand.tensor], sides.stack)[sides.stays])


def made(side: Side, now: Arrays, sides: Sides) -> np.ndarray:
    """The operand in the pruned model."""
    return side.operand.matrices(now[side.operand.tensor], sides.stack_now)
