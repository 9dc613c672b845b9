"""Control flow: what goes into bodies and comes out of them is the same tensor by another name."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxprune.reading.bodies import CONDITION, PASSINGS, Exit, Passing, passings
from onnxprune.rules.facts import AllOf, Condition, Equal, Fact, Frozen, Zero
from onnxprune.rules.operation import BodyOf, NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import fixed


@rule(*PASSINGS)
def control_flow(op: Op) -> Iterator[Fact]:
    """Inputs of a body are those of the node or what the run before made; outputs of all bodies are the node's."""
    for passing, body in taken(op):
        yield from coming_in(op, passing, body)
        yield from going_out(op, passing, body)
    for number, tensor in enumerate(op.outputs):
        sources = [found for passing, body in taken(op) for found in made_of(op, passing, body, number)]
        if tensor is not None and sources:
            yield Zero(tensor, AllOf(tuple(sources)))


def taken(op: Op) -> list[tuple[Passing, BodyOf]]:
    """The bodies that run; where a known condition decides between two, the one that it chooses."""
    found = list(zip(passings(op.node), op.bodies, strict=True))
    condition = op.input(CONDITION).value if len(found) > 1 else None
    if condition is None:
        return found
    return [(passing, body) for passing, body in found if chosen(passing, condition)]


def chosen(passing: Passing, condition: np.ndarray) -> bool:
    return passing.attribute == ("then_branch" if condition.all() else "else_branch")


def coming_in(op: Op, passing: Passing, body: BodyOf) -> Iterator[Fact]:
    """What the body's inputs are in the first run, and in those that follow."""
    for number, (entry, inner) in enumerate(zip(passing.entries, body.inputs, strict=True)):
        if entry.source is None:
            continue
        outer = op.input(entry.source)
        if inner is None:
            raise NotUnderstood(f"the shape of its body's input {number} is not known")
        yield from alike(outer, inner, entry.along)
        again = [body.outputs[k] for k, leaving in enumerate(passing.exits) if leaving.again == number]
        yield Zero(inner, AllOf((outer, *(tensor for tensor in again if tensor is not None))))


def going_out(op: Op, passing: Passing, body: BodyOf) -> Iterator[Fact]:
    """What becomes of the body's outputs."""
    for number, (leaving, inner) in enumerate(zip(passing.exits, body.outputs, strict=True)):
        following = None if leaving.again is None else body.inputs[leaving.again]
        outer = None if leaving.target is None else op.outputs[leaving.target]
        if inner is None:
            raise NotUnderstood(f"the shape of its body's output {number} is not known")
        if following is not None:
            yield from alike(following, inner)
        if outer is not None:
            yield from alike(outer, inner, leaving.along)


def alike(outer: Tensor, inner: Tensor, along: int | None = None) -> Iterator[Fact]:
    """Both have the same axes, but for the one along which `inner` is one position of `outer`."""
    around = list(outer.axes)
    if along is not None:
        yield from fixed((around.pop(along),), "runs of a body")
    if len(around) != inner.rank:
        raise NotUnderstood(f"{outer.name!r} and {inner.name!r} have another number of axes")
    for one, other in zip(around, inner.axes, strict=True):
        if one.size == other.size:
            yield Equal(one, other)
        else:
            yield Frozen(one, f"{op_text(outer)} changes its width from run to run")
            yield Frozen(other, f"{op_text(outer)} changes its width from run to run")


def op_text(tensor: Tensor) -> str:
    return f"the body that makes {tensor.name!r}"


def made_of(op: Op, passing: Passing, body: BodyOf, number: int) -> Iterator[Condition]:
    """What the node's output number `number` may be."""
    for leaving, inner in zip(passing.exits, body.outputs, strict=True):
        if leaving.target == number and inner is not None:
            yield inner
            yield from untouched(op, passing, leaving)


def untouched(op: Op, passing: Passing, leaving: Exit) -> Iterator[Condition]:
    """What comes out if the body never runs."""
    source = None if leaving.again is None else passing.entries[leaving.again].source
    if source is not None:
        yield op.input(source)
