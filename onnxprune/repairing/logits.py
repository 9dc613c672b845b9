"""
Refitting pairs of layers whose outputs are multiplied with each other, as queries and keys are.

    original   q · kᵀ          a sum over all channels of a head
    pruned     q' · k'ᵀ        over those that are left: terms are missing

No layer reads what was pruned here, and no layer behind could tell what the sums have lost. So both layers get new
weights, one after the other, under which the products that are left add up to what they did in the original.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_in_main
from onnxprune.probing.calibration import Calibration
from onnxprune.repairing.bias import Bias
from onnxprune.repairing.consumers import Consumer, consumers
from onnxprune.repairing.factors import Layer, Operand, Wide
from onnxprune.repairing.mixes import Mixes, best_mixes, error_now, error_of
from onnxprune.repairing.places import Place
from onnxprune.repairing.products import Product, Runs, Sides, meetings_of, sides_of
from onnxprune.repairing.steps import Refit, Repaired
from onnxprune.rules.axes import Axis, Dim, leaves
from onnxprune.rules.facts import Contracted
from onnxprune.rules.operation import Tensor


@dataclass(frozen=True)
class LogitsStep:
    """One such product."""

    couplings: Couplings
    product: Product
    summed: Axis

    @property
    def position(self) -> int:
        """Of its node in the graph."""
        return self.product.node.position

    @property
    def reads(self) -> frozenset[Dim]:
        """The Dims that it sums over."""
        return frozenset(leaves(self.summed))

    def refit(self, model: ModelProto, kept: Kept, samples: Calibration, threads: int) -> Iterator[Refit]:
        """Give both layers the weights that fit best; nothing comes of layers that cannot change."""
        layers = {} if self.reads.isdisjoint(kept) else self.layers(model, kept, samples)
        if not layers:
            return
        runs = Runs(self.product, layers, model, samples, threads or 1)
        sides = sides_of(runs)
        if sides is None:
            return
        wide = {output: layer.widened(samples, threads) for output, layer in layers.items()}
        fitted, held_out = meetings_of(runs, sides, wide)
        if len(fitted) != len(held_out) or not all(meeting.is_finite for meeting in (*fitted, *held_out)):
            return
        one, other = sides.sides
        free = (one.layer.bias.is_free, other.layer.bias.is_free)
        mixes, penalty = best_mixes(fitted, held_out, (one.starts, other.starts), free)
        before = error_now(held_out)
        if penalty is None:
            yield Refit(Repaired(self.product.node.name, before, before, None), ())
            return
        changed = tuple(stored(mixes, sides, wide, layers))
        yield Refit(Repaired(self.product.node.name, before, error_of(mixes, held_out), penalty), changed)

    def layers(self, model: ModelProto, kept: Kept, samples: Calibration) -> dict[str, Layer]:
        """The layers that make the operands, by their outputs; none if one of them cannot change."""
        found: dict[str, Layer] = {}
        for output, consumer in {operand.layer.output: operand.layer for operand in self.product.operands}.items():
            changes = Place(model, consumer.output, consumer.weight).can_change
            bias = Bias.of(model, consumer, samples) if changes else None
            if bias is None:
                return {}
            found[output] = Layer(self.couplings, consumer, model, kept, bias)
        return found


def stored(mixes: Mixes, sides: Sides, wide: Mapping[str, Wide], layers: Mapping[str, Layer]) -> Iterator[str]:
    """Give the layers the weights that make these mixes; the names of the constants that hold them."""
    for side, own in zip(sides.sides, mixes, strict=True):
        for block, mix in zip(side.blocks, own, strict=True):
            block.mix(mix, wide[side.operand.layer.output], side.layer)
    for layer in layers.values():
        yield from layer.put()


def logits_steps(couplings: Couplings) -> Iterator[LogitsStep]:
    """Every product of two computed tensors, each of which comes from one layer that is linear in its weight."""
    layers, typing = {layer.output: layer for layer in consumers(couplings)}, couplings.typing
    found: dict[int, LogitsStep] = {}
    for op, fact in facts_in_main(typing, Contracted):
        if len(fact.by) != 2 or len(op.results) != 1 or any(one.name in typing.knowable for one in fact.by):
            continue
        summed = typing.solver.resolve(fact.sums)
        one, other = (operand_of(tensor, summed, layers, couplings) for tensor in fact.by)
        if one is not None and other is not None and one.tensor != other.tensor:
            found.setdefault(op.node.position, LogitsStep(couplings, Product(couplings, op.node, (one, other)), summed))
    yield from found.values()


def operand_of(tensor: Tensor, summed: Axis, layers: Mapping[str, Consumer], couplings: Couplings) -> Operand | None:
    """The tensor as an operand, if it is summed over along one of its last two axes and comes from one layer."""
    along = [number - tensor.rank for number, axis in enumerate(couplings.typing.axes(tensor)) if axis == summed]
    behind = layers_before(tensor.name, layers, couplings)
    fits = len(along) == 1 and along[0] >= -2 and tensor.rank >= 2 and len(behind) == 1
    return Operand(tensor.name, along[0], behind[0]) if fits else None


def layers_before(name: str, layers: Mapping[str, Consumer], couplings: Couplings) -> list[Consumer]:
    """The last layer on each way to a tensor."""
    pending, seen, found = [name], set[str](), list[Consumer]()
    while pending:
        tensor = pending.pop()
        if tensor in seen or tensor in couplings.typing.knowable:
            continue
        seen.add(tensor)
        if tensor in layers:
            found.append(layers[tensor])
        elif tensor in couplings.graph.makers:
            pending.extend(couplings.graph.makers[tensor].reads)
    return found
