"""Attention as ONNX Runtime has it: `com.microsoft`."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.attention import (
    Heads,
    attended,
    heads_of,
    implied_scale,
    masked,
    remembered,
)
from onnxprune.rules.axes import Axis, product_of, sum_of
from onnxprune.rules.facts import AllOf, Condition, Contracted, Equal, Fact, Macs, Stores, Zero
from onnxprune.rules.operation import NotUnderstood, Op, Tensor
from onnxprune.rules.registry import keeps_all, rule
from onnxprune.rules.vocabulary import fixed, free

keeps_all(
    *("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"),
    domain="com.microsoft",
    because="runs whole models of its own",
)
keeps_all(
    *("DecoderAttention", "DecoderMaskedMultiHeadAttention", "DecoderMaskedSelfAttention", "LinearAttention"),
    *("LongformerAttention", "PackedAttention", "PackedMultiHeadAttention", "PagedAttention", "SparseAttention"),
    domain="com.microsoft",
    because="is a form of attention whose heads are not followed",
)
keeps_all("MoE", domain="com.microsoft", because="sends each token to experts of its own")


@rule("MultiHeadAttention", domain="com.microsoft")
def multi_head_attention(op: Op) -> Iterator[Fact]:
    """Heads, the width of queries and keys, and that of values are groups; a packed bias goes along."""
    q, k, v, bias = op.input(0), op.optional(1), op.optional(2), op.optional(3)
    if k is None or v is None or q.rank != 3 or k.rank == 5:
        raise NotUnderstood("it packs queries, keys and values in one tensor")
    count = int(op.attribute("num_heads"))
    heads = heads_of(count, count, q[2].size // count, v[-1].size // (1 if v.rank == 4 else count))
    past_key, past_value = op.optional(6), op.optional(7)
    outputs = [*op.outputs, None, None, None][:4]
    yield from attended(op, q, k, v, heads, past=past_key is not None)
    yield Stores("num_heads", None, heads.kv)
    yield from implied_scale(op, heads.width)
    yield from masked(op.optional(5), heads.queries)
    if outputs[3] is not None:
        yield from masked(outputs[3], heads.queries)
    for other in (op.optional(4), *op.inputs[8:]):
        yield from fixed(other.axes if other is not None else (), "mask")
    if bias is not None:
        yield from packed_bias(bias, heads)
    keys: Condition = k if bias is None else AllOf((k, bias))
    values: Condition = v if bias is None else AllOf((v, bias))
    yield from remembered(past_key, outputs[1], keys, heads.kv, heads.width)
    yield from remembered(past_value, outputs[2], values, heads.kv, heads.made)
    yield Zero(op.output(), values if past_value is None else AllOf((values, past_value)))


def packed(heads: Heads) -> Axis:
    """Queries, keys and values end to end."""
    return sum_of(
        (
            product_of((heads.queries, heads.width)),
            product_of((heads.kv, heads.width)),
            product_of((heads.kv, heads.made)),
        )
    )


def packed_bias(bias: Tensor, heads: Heads) -> Iterator[Fact]:
    """Added to queries, keys and values before they are multiplied."""
    if not bias.own:
        raise NotUnderstood("its bias is computed")
    yield Equal(bias[0], packed(heads))
    yield Contracted(bias, 0, by=(bias,))


@rule("Attention", domain="com.microsoft")
def attention_of_runtime(op: Op) -> Iterator[Fact]:
    """
    Attention with the layers that make queries, keys and values::

        x [n, s, i]   w [i, h·d + h·d + h·e]   b [h·d + h·d + h·e]   ->   y [n, s, h·e]
    """
    x, w, bias, y, past = op.input(0), op.input(1), op.optional(2), op.output(), op.optional(4)
    count = int(op.attribute("num_heads"))
    sizes = [int(size) for size in op.attribute("qkv_hidden_sizes") or [w[1].size // 3] * 3]
    present = op.outputs[1] if len(op.outputs) > 1 else None
    one_width = past is not None or present is not None
    heads = heads_of(count, count, sizes[0] // count, None if one_width else sizes[2] // count)
    yield Equal(x[0], y[0])
    yield Equal(x[1], y[1])
    yield Equal(x[2], w[0])
    yield Equal(w[1], packed(heads))
    yield Equal(y[2], product_of((heads.kv, heads.made)))
    yield from fixed(x[1:2], "sequence")
    yield Contracted(x, 2, by=(x, w))
    yield Contracted(w, 1, by=(w,))
    if bias is not None:
        yield from packed_bias(bias, heads)
    yield Stores("num_heads", None, heads.kv)
    for element, width in enumerate((heads.width, heads.width, heads.made)):
        yield Stores("qkv_hidden_sizes", element, product_of((heads.kv, width)))
    yield from implied_scale(op, heads.width)
    if op.attribute("do_rotary", 0):
        yield from fixed((heads.width,), "pairs")
    yield from masked(op.optional(5), heads.queries)
    for other in (op.optional(3), op.optional(6)):
        yield from fixed(other.axes if other is not None else (), "mask")
    for state in (past, present):
        if state is not None:
            yield Equal(state[2], heads.kv)
            yield Equal(state[4], heads.width)
            yield from fixed((state[0], state[3]), "sequence")
    yield Macs((x[0], x[1], x[2], w[1]))
    yield Macs((x[0], x[1], x[1], heads.kv, heads.width))
    yield Macs((x[0], x[1], x[1], heads.kv, heads.made))
    if past is None:
        yield Zero(y, w if bias is None else AllOf((w, bias)))


@rule("GroupQueryAttention", domain="com.microsoft")
def group_query_attention(op: Op) -> Iterator[Fact]:
    """Heads of keys and the queries that share them are groups; the width of heads stays."""
    q, k, v, y = op.input(0), op.optional(1), op.optional(2), op.output()
    queries, kv = int(op.attribute("num_heads")), int(op.attribute("kv_num_heads"))
    total = queries if k is not None else queries + 2 * kv
    heads = heads_of(queries, kv, q[2].size // total)
    outputs = [*op.outputs, None, None, None][:4]
    past_key, past_value = op.optional(3), op.optional(4)
    yield from fixed((heads.width,), "width of heads, which the runtime wants in certain sizes")
    if k is not None and v is not None:
        yield from attended(op, q, k, v, heads, past=True)
        made: Condition = v
    else:
        yield Equal(q[0], y[0])
        yield Equal(q[1], y[1])
        yield Equal(q[2], packed(heads))
        yield Equal(y[2], product_of((heads.queries, heads.width)))
        yield Macs((q[0], q[1], q[1], heads.queries, heads.width, free(2)))
        made = q
    yield Stores("num_heads", None, heads.queries)
    yield Stores("kv_num_heads", None, heads.kv)
    yield from remembered(past_key, outputs[1], k or q, heads.kv, heads.width)
    yield from remembered(past_value, outputs[2], made, heads.kv, heads.width)
    yield from masked(op.optional(10), heads.queries)
    if outputs[3] is not None:
        yield from masked(outputs[3], heads.queries)
    if (sink := op.optional(11)) is not None:
        yield Equal(sink[0], heads.queries)
    for number in (5, 6, 7, 8, 9, 12, 13):
        other = op.optional(number)
        yield from fixed(other.axes if other is not None else (), "sequence")
    if k is not None:
        yield Zero(y, made if past_value is None else AllOf((made, past_value)))
