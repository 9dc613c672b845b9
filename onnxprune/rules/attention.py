"""Attention in one node, and what goes with it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from onnxprune.rules.axes import Axis, product_of
from onnxprune.rules.facts import (
    AllOf,
    Condition,
    Contracted,
    Equal,
    Fact,
    Implied,
    Macs,
    Stores,
    Unsummed,
    Zero,
)
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import fixed, free


@dataclass(frozen=True, slots=True)
class Heads:
    """
    What the channels of attention are::

        queries  (kv · repeat) · width      keys  kv · width
        outputs  (kv · repeat) · made       values  kv · made
    """

    kv: Axis
    repeat: Axis
    width: Axis
    made: Axis

    @property
    def queries(self) -> Axis:
        """Heads of the queries: as many of them share a head of keys and values as `repeat` says."""
        return product_of((self.kv, self.repeat))


def heads_of(queries: int, kv: int, width: int, made: int | None = None) -> Heads:
    """Heads of these sizes; without `made`, keys and values have one width."""
    if not kv or queries % kv:
        raise NotUnderstood(f"{queries} heads of queries do not share {kv} of keys and values evenly")
    wide = free(width)
    return Heads(free(kv), free(queries // kv), wide, wide if made is None else free(made))


def headed(tensor: Tensor, heads: Axis, width: Axis) -> Iterator[Fact]:
    """Heads have an axis of their own, [n, h, s, d], or are merged with their width, [n, s, h·d]."""
    if tensor.rank == 4:
        yield Equal(tensor[1], heads)
        yield Equal(tensor[3], width)
    else:
        yield Equal(tensor[2], product_of((heads, width)))


def sequence(tensor: Tensor) -> int:
    """The number of the axis along the sequence."""
    return 2 if tensor.rank == 4 else 1


def attended(op: Op, q: Tensor, k: Tensor, v: Tensor, heads: Heads, *, past: bool) -> Iterator[Fact]:
    """Queries by keys over the width, a softmax over the sequence, and values by what that gives."""
    y = op.output()
    yield from headed(q, heads.queries, heads.width)
    yield from headed(k, heads.kv, heads.width)
    yield from headed(v, heads.kv, heads.made)
    yield from headed(y, heads.queries, heads.made)
    for tensor in (k, v, y):
        yield Equal(tensor[0], q[0])
    yield Equal(q[sequence(q)], y[sequence(y)])
    yield Equal(k[sequence(k)], v[sequence(v)])
    yield from fixed((k[sequence(k)],), "sequence")
    yield Contracted(q, q.rank - 1, by=(q,) if past else (q, k))
    positions = (q[0], q[sequence(q)], k[sequence(k)], heads.queries)
    yield Macs((*positions, heads.width))
    yield Macs((*positions, heads.made))


def implied_scale(op: Op, width: Axis) -> Iterator[Fact]:
    """Without a scale (or with 0) products are divided by the root of the width."""
    if not op.attribute("scale", 0.0):
        yield Implied("scale", 1 / math.sqrt(width.size), width)


def counted(op: Op, name: str, axis: Axis) -> Iterator[Fact]:
    """An attribute counts the axis, if it is there."""
    if op.attribute(name, 0):
        yield Stores(name, None, axis)


def masked(mask: Tensor | None, heads: Axis) -> Iterator[Fact]:
    """A mask or bias that broadcasts to [n, h, s, t]: only its heads are no places in the sequence."""
    if mask is None:
        return
    for number, axis in enumerate(mask.axes):
        if mask.rank - number == 3 and axis.size > 1 and axis.size == heads.size:
            yield Equal(axis, heads)
        else:
            yield from fixed((axis,), "mask")


def remembered(past: Tensor | None, present: Tensor | None, new: Condition, heads: Axis, width: Axis) -> Iterator[Fact]:
    """Keys or values of former steps, [n, h, s, d], to which those of this one are added."""
    for state in (past, present):
        if state is not None:
            yield Equal(state[1], heads)
            yield Equal(state[3], width)
            yield from fixed((state[2],), "sequence")
    if present is not None:
        yield Zero(present, new if past is None else AllOf((new, past)))


def values_zero(op: Op, v: Tensor, past: Tensor | None) -> Iterator[Fact]:
    """The output is zero where all values are."""
    zero: Condition = Unsummed(v, (sequence(v),))
    yield Zero(op.output(), zero if past is None else AllOf((zero, Unsummed(past, (2,)))))


@rule("Attention")
def attention(op: Op) -> Iterator[Fact]:
    """Heads, the width of queries and keys, and that of values are groups; heads of keys may serve several queries."""
    q, k, v = op.input(0), op.input(1), op.input(2)
    queries = q[1].size if q.rank == 4 else int(op.attribute("q_num_heads", 0))
    kv = k[1].size if k.rank == 4 else int(op.attribute("kv_num_heads", 0))
    if not queries or not kv:
        raise NotUnderstood("its number of heads is missing")
    width, made = (t[-1].size // (1 if t.rank == 4 else n) for t, n in ((q, queries), (v, kv)))
    heads = heads_of(queries, kv, width, made)
    past_key, past_value = op.optional(4), op.optional(5)
    outputs = [*op.outputs, None, None, None][:4]
    yield from attended(op, q, k, v, heads, past=past_key is not None)
    yield from counted(op, "q_num_heads", heads.queries)
    yield from counted(op, "kv_num_heads", heads.kv)
    yield from implied_scale(op, heads.width)
    yield from masked(op.optional(3), heads.queries)
    if outputs[3] is not None:
        yield from masked(outputs[3], heads.queries)
    yield from remembered(past_key, outputs[1], k, heads.kv, heads.width)
    yield from remembered(past_value, outputs[2], v, heads.kv, heads.made)
    yield from values_zero(op, v, past_value)


@rule("LinearAttention")
def linear_attention(op: Op) -> Iterator[Fact]:
    """As Attention, with a state of keys by values that runs along the sequence in place of the softmax."""
    q, k, v, past = op.input(0), op.input(1), op.input(2), op.optional(3)
    queries, kv = int(op.attribute("q_num_heads")), int(op.attribute("kv_num_heads"))
    heads = heads_of(queries, kv, q[2].size // queries, v[2].size // kv)
    yield from attended(op, q, k, v, heads, past=past is not None)
    yield Contracted(k, 2, by=(k,))
    yield from counted(op, "q_num_heads", heads.queries)
    yield from counted(op, "kv_num_heads", heads.kv)
    yield from implied_scale(op, heads.width)
    for state in (past, *op.outputs[1:2]):
        if state is not None:
            for axis, expected in zip(state.axes, (q[0], heads.kv, heads.width, heads.made), strict=True):
                yield Equal(axis, expected)
    for gate in (op.optional(4), op.optional(5)):
        if gate is not None and gate[2].size > 1:
            yield Equal(gate[2], heads.kv if gate[2].size == kv else product_of((heads.kv, heads.width)))
    yield Zero(op.output(), v if past is None else AllOf((v, past)))
