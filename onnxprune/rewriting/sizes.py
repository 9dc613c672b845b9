"""
Keep every size that the graph stores or computes true to the new widths.

Two kinds of numbers are looked at: those that a rule says hold a width (a Reshape's shape, a group count), which must
follow it, and those computed from shapes that any other node reads (an attention scale from the head's width), which
must stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Stated
from onnxprune.rewriting.editing import Draft
from onnxprune.rewriting.mending import Candidate, Mender
from onnxprune.rewriting.widths import Sizes
from onnxprune.rules.axes import Axis
from onnxprune.rules.facts import Implied, Stores
from onnxprune.rules.operation import Op, Tensor


def adjust_sizes(couplings: Couplings, kept: Kept, draft: Draft) -> Sizes:
    """Edit the draft so that every stored and computed size is right."""
    sizes = Sizes(couplings, kept)
    for one in couplings.typing.stated:
        stored = [fact for fact in one.facts if isinstance(fact, Stores)]
        set_stored_attributes(one.op, stored, sizes, draft)
        write_down_widths(one.op, stored, sizes, draft)
        write_down_implied(one, sizes, draft)
    candidates = list(demanded_inputs(sizes))
    if candidates:
        Mender(sizes, draft, candidates).mend_all()
    return sizes


def set_stored_attributes(op: Op, stored: Sequence[Stores], sizes: Sizes, draft: Draft) -> None:
    """Write new widths into the attributes that store them."""
    for name, value in stored_attributes(op, stored, sizes.new_width):
        draft.set_attribute(op.node.position, name, value)


def stored_attributes(
    op: Op, stored: Sequence[Stores], new_width: Callable[[Axis], int]
) -> Iterator[tuple[str, list[int] | int]]:
    """The attributes that store widths and change with them, and what they become."""
    present = [fact for fact in stored if isinstance(fact.place, str) and fact.place in op.node.attributes]
    for name in dict.fromkeys(str(fact.place) for fact in present):
        old = op.node.attributes[name]
        numbers = list(old) if isinstance(old, list) else [old]
        for fact in present:
            at = fact.element or 0
            if fact.place == name and numbers[at] == fact.sign * fact.size.size:
                numbers[at] = fact.sign * new_width(fact.size)
        value = numbers if isinstance(old, list) else numbers[0]
        if value != old:
            yield name, value


def write_down_widths(op: Op, stored: Sequence[Stores], sizes: Sizes, draft: Draft) -> None:
    """Give a node the parameter that was left out while its parts were equal, once they are not."""
    absent = [fact for fact in stored if is_absent(fact.place, op)]
    widths = [sizes.new_width(fact.size) for fact in absent]
    if len(set(widths)) <= 1 or widths == [fact.size.size for fact in absent]:
        return
    position, place = op.node.position, absent[0].place
    if isinstance(place, str):
        draft.set_attribute(position, place, widths)
        return
    name = draft.fresh(f"{op.node.outputs[0]}.{place}")
    draft.add(name, np.array(widths, np.int64))
    draft.read_instead(position, place, name)
    draft.drop_attribute(position, absent[0].replaces)


def write_down_implied(one: Stated, sizes: Sizes, draft: Draft) -> None:
    """Let what followed from an old width stay as it was."""
    for fact in one.facts:
        if isinstance(fact, Implied) and sizes.new_width(fact.size) != fact.size.size:
            draft.set_attribute(one.op.node.position, fact.name, fact.value)


def is_absent(place: str | int, op: Op) -> bool:
    return place not in op.node.attributes if isinstance(place, str) else op.optional(place) is None


def demanded_inputs(sizes: Sizes) -> Iterator[Candidate]:
    """Inputs that store a width that changes, and inputs computed from shapes that other nodes read."""
    sized = frozenset(derived_from_shapes(sizes))
    for one in sizes.couplings.typing.stated:
        op = one.op
        if all(name in sizes.computed for name in op.node.outputs if name):
            continue
        for index, tensor in enumerate(op.inputs):
            if tensor is None:
                continue
            factors = factors_at(one.facts, index, tensor, sizes)
            changes = any(factor != 1 for factor in factors or ())
            if changes or tensor.name in sized:
                yield Candidate(op.node, index, factors if changes else None)


def factors_at(facts: Sequence[object], index: int, tensor: Tensor, sizes: Sizes) -> tuple[Fraction, ...] | None:
    """For each element of the input, by how much it must change; None when the input stores no width."""
    stored = [fact for fact in facts if isinstance(fact, Stores) and fact.place == index]
    if not stored or tensor.value is None:
        return None
    old = tensor.value.reshape(-1)
    factors = [Fraction(1)] * old.size
    for fact in stored:
        element = fact.element or 0
        if element < old.size and int(old[element]) == fact.sign * fact.size.size and fact.size.size:
            factors[element] = sizes.factor(fact.size)
    return tuple(factors)


def derived_from_shapes(sizes: Sizes) -> Iterator[str]:
    """Computed tensors that depend on the shape of a tensor that shrinks."""
    found: set[str] = set()
    for one in sizes.couplings.typing.stated:
        for name in one.op.node.outputs:
            if name not in sizes.computed:
                continue
            fact = sizes.measured.get(name)
            if fact is not None:
                if any(sizes.factor(axis) != 1 for axis in fact.sizes):
                    found.add(name)
            elif found.intersection(one.op.node.inputs):
                found.add(name)
    yield from found
