"""Rotary embeddings: channels turned in pairs by the place in the sequence."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.attention import counted, headed, sequence
from onnxprune.rules.axes import product_of, sum_of
from onnxprune.rules.facts import AllOf, AnyOf, Equal, Fact, Zero
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import fixed, free


@rule("RotaryEmbedding")
def rotary_embedding(op: Op) -> Iterator[Fact]:
    """Pairs of each head are turned, halves of it or neighbours; tables of cosines and sines go along."""
    yield from turned(op, op.input(0), op.input(1), op.input(2), op.optional(3))


@rule("RotaryEmbedding", domain="com.microsoft")
def rotary_embedding_of_runtime(op: Op) -> Iterator[Fact]:
    """As the standard's, with another order of inputs."""
    yield from turned(op, op.input(0), op.input(2), op.input(3), op.input(1))


def turned(op: Op, x: Tensor, cosines: Tensor, sines: Tensor, places: Tensor | None) -> Iterator[Fact]:
    y, count = op.output(), int(op.attribute("num_heads", 0))
    width = x[3].size if x.rank == 4 else x[2].size // count if count else 2 * cosines[-1].size
    heads = x[1] if x.rank == 4 else free(x[2].size // width)
    half = cosines[-1]
    both = free(2)
    rotated = product_of((half, both) if op.attribute("interleaved", 0) else (both, half))
    if rotated.size > width:
        raise NotUnderstood(f"its tables turn {rotated.size} of {width} positions")
    each = sum_of((rotated, free(width - rotated.size)))
    yield from headed(x, heads, each)
    yield from headed(y, heads, each)
    for tensor in (y, *((places,) if places is not None and places.rank == 2 else ())):
        yield Equal(tensor[0], x[0])
    yield Equal(x[sequence(x)], y[sequence(y)])
    yield from tables(cosines, sines)
    yield from fixed((both,), "pairs")
    for index in (places,) if places is not None else ():
        yield from fixed(index.axes, "sequence")
    if x.rank == 3:
        yield from counted(op, "num_heads", heads)
    yield from counted(op, "rotary_embedding_dim", rotated)
    yield Zero(y, AnyOf((x, AllOf((cosines, sines)))))


def tables(cosines: Tensor, sines: Tensor) -> Iterator[Fact]:
    """Both have the same columns; rows are places in the sequence."""
    yield Equal(sines[-1], cosines[-1])
    yield from fixed((*cosines[:-1], *sines[:-1]), "sequence")
