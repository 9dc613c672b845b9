"""Attention in one node, the standard's and ONNX Runtime's, and rotary embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.rewriting.rewrite import rewrite_kept
from tests.models import build
from tests.oracle import assert_removal_equals_masking, assert_removal_equals_zeroing, coupled, random_selection


def projected(q: int, k: int, v: int, node: str, out: int, *, extra: str = "", opset: int = 23) -> ModelProto:
    """Queries, keys and values of these widths, an attention that makes `a`, and a layer that reads it."""
    return build(
        f"""
        q = MatMul(x[N,4,6], w1[6,{q}])
        k = MatMul(x, w2[6,{k}])
        v = MatMul(x, w3[6,{v}])
        {extra}
        {node}
        y = MatMul(a, w4[{out},3])
        """,
        opset=opset,
    )


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    "options", ["", "is_causal=1", "scale=0.5", "softcap=2.0", "is_causal=1, scale=0.25, softcap=1.0"]
)
def test_attention_of_merged_heads(options: str, opset: int) -> None:
    """Heads, the width of queries and keys, and that of values are a group each; an implied scale stays as it was."""
    options = ", ".join(part for part in ("q_num_heads=3, kv_num_heads=3", options) if part)
    model = projected(12, 12, 18, f"a = Attention<{options}>(q, k, v)", 18, opset=opset)
    assert_removal_equals_zeroing(model, groups=[3, 4, 6])


def test_heads_of_keys_that_queries_share() -> None:
    """Whole heads of keys go with the queries that share them; the queries of every one go evenly."""
    model = projected(24, 8, 8, "a = Attention<q_num_heads=6, kv_num_heads=2>(q, k, v)", 24)
    assert_removal_equals_zeroing(model, groups=[2, 3, 4, 4])


def test_one_head_of_keys_for_all_queries() -> None:
    """With one head of keys and values the queries' heads are free."""
    model = projected(24, 4, 4, "a = Attention<q_num_heads=6, kv_num_heads=1>(q, k, v)", 24)
    assert_removal_equals_zeroing(model, groups=[6, 4, 4])


@pytest.mark.parametrize("mask", ["m[4,4]", "m[3,4,4]", "m[1,3,4,4]", "m[1,1,4,4]", "bool m[4,4]{1,0,1,1,1}"])
def test_attention_of_heads_with_an_axis_of_their_own(mask: str) -> None:
    """Heads as an axis, with a mask for all or for each of them."""
    model = build(
        f"""
        q0 = MatMul(x[N,4,6], w1[6,12])
        q1 = Reshape(q0, s{{0,0,3,4}})
        q = Transpose<perm=[0,2,1,3]>(q1)
        k0 = MatMul(x, w2[6,12])
        k1 = Reshape(k0, s)
        k = Transpose<perm=[0,2,1,3]>(k1)
        v0 = MatMul(x, w3[6,12])
        v1 = Reshape(v0, s)
        v = Transpose<perm=[0,2,1,3]>(v1)
        a = Attention(q, k, v, {mask})
        a1 = Transpose<perm=[0,2,1,3]>(a)
        a2 = Reshape(a1, t{{0,0,12}})
        y = MatMul(a2, w4[12,3])
        """,
        opset=23,
    )
    assert_removal_equals_zeroing(model, groups=[3, 4, 4])


def test_attention_that_goes_on_from_former_steps() -> None:
    """Heads and widths that a cache of the interface holds stay, and the queries that share a head are free."""
    node = "a, ypk, ypv = Attention<q_num_heads=6, kv_num_heads=2>(q, k, v, , xpk[N,2,3,4], xpv[N,2,3,4])"
    assert_removal_equals_zeroing(projected(24, 8, 8, node, 24), groups=[3])


def test_products_that_are_an_output() -> None:
    """Products of queries and keys in the model's output keep heads, not widths."""
    node = "a, keys, values, yqk = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)"
    assert_removal_equals_zeroing(projected(12, 12, 18, node, 18), groups=[4, 6])


def test_what_attention_makes_of_zeros() -> None:
    """Its output is zero where values are: a product of two of them is exact."""
    model = build(
        """
        q = MatMul(x[N,4,6], w1[6,12])
        v = MatMul(x, w3[6,18])
        a = Attention<q_num_heads=3, kv_num_heads=3>(q, q, v)
        t = Transpose<perm=[0,2,1]>(a)
        y = MatMul(a, t)
        """,
        opset=23,
    )
    assert_removal_equals_zeroing(model, groups=[3, 4, 6])


def test_an_implied_scale_is_written_down_when_the_width_changes() -> None:
    """Not before: a model that loses heads alone has no new attribute."""
    couplings = coupled(projected(12, 12, 18, "a = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)", 18))
    (heads,) = (group for group in couplings.groups if group.size == 3)
    (width,) = (group for group in couplings.groups if group.size == 4)
    for group, wanted in ((heads, []), (width, [0.5])):
        pruned = rewrite_kept(couplings, random_selection([group], np.random.default_rng(0)))
        scales = [attribute.f for attribute in pruned.graph.node[3].attribute if attribute.name == "scale"]
        assert scales == wanted


ROTATIONS = [
    ("RotaryEmbedding(h, cos[4,4], sin[4,4], p)", [2, 4]),
    ("RotaryEmbedding<interleaved=1>(h, cos[4,4], sin[4,4], p)", [2, 4]),
    ("RotaryEmbedding<rotary_embedding_dim=4>(h, cos[4,2], sin[4,2], p)", [2, 2, 4]),
    ("RotaryEmbedding<interleaved=1, rotary_embedding_dim=4>(h, cos[4,2], sin[4,2], p)", [2, 2, 4]),
    ("RotaryEmbedding(h, cos[2,3,4], sin[2,3,4])", [2, 4]),
]


@pytest.mark.parametrize(("rotation", "sizes"), ROTATIONS)
@pytest.mark.parametrize("merged", [True, False])
def test_rotary_embedding(rotation: str, sizes: list[int], merged: bool) -> None:
    """Pairs stay together, the tables go along, and what is not turned is a group of its own."""
    rotation = rotation.replace("(h, ", f"({'a' if merged else 'h'}, ")
    if merged:
        name, _, rest = rotation.partition("<" if "<" in rotation else "(")
        rotation = f"{name}<num_heads=2, {rest}" if "<" in rotation else f"{name}<num_heads=2>({rest}"
    model = build(
        f"""
        a = MatMul(x[2,3,6], w1[6,16])
        {"p = Cast<to=7>(places[2,3]{0.0,1.0,2.0})" if ", p)" in rotation else ""}
        split = Reshape(a, s{{0,0,2,8}})
        h = Transpose<perm=[0,2,1,3]>(split)
        b = {rotation}
        {"flat = Identity(b)" if merged else "back = Transpose<perm=[0,2,1,3]>(b)"}
        {"" if merged else "flat = Reshape(back, t{0,0,16})"}
        y = MatMul(flat, w2[16,3])
        """,
        opset=23,
    )
    assert_removal_equals_zeroing(model, groups=sizes)


@pytest.mark.parametrize(
    ("options", "tables", "sizes"),
    [
        ("", "cos[5,4], sin[5,4]", [2, 4]),
        ("<interleaved=1>", "cos[5,4], sin[5,4]", [2, 4]),
        ("<num_heads=2>", "cos[5,4], sin[5,4]", [2, 4]),
        ("<num_heads=2, rotary_embedding_dim=4>", "cos[5,2], sin[5,2]", [2, 2, 4]),
    ],
)
@pytest.mark.parametrize("places", ["p[1]{1}", "p[2,3]{0,1,2,2,1,0}"])
def test_rotary_embedding_of_onnx_runtime(options: str, tables: str, sizes: list[int], places: str) -> None:
    """As the standard's."""
    model = build(f"""
        a = MatMul(x[2,3,6], w1[6,16])
        b = com.microsoft.RotaryEmbedding{options}(a, {places}, {tables})
        y = MatMul(b, w2[16,3])
    """)
    assert_removal_equals_zeroing(model, groups=sizes)


@pytest.mark.parametrize(
    "inputs",
    [
        "q, k, v",
        "q, k, v, b[42]",
        "q, k, v, , int32 m[2]{4,3}",
        "q, k, v, , , bias[1,3,4,4]",
        "q, k, v, b[42], , bias[1,1,4,4]",
    ],
)
@pytest.mark.parametrize("options", ["", ", scale=0.3", ", unidirectional=1"])
def test_multi_head_attention(inputs: str, options: str) -> None:
    """Heads and both widths, with a packed bias and with one of the products."""
    node = f"a = com.microsoft.MultiHeadAttention<num_heads=3{options}>({inputs})"
    model = projected(12, 12, 18, node, 18, opset=18)
    if "int32" in inputs:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert_removal_equals_zeroing(model, groups=[3, 4, 6])


def test_multi_head_attention_that_goes_on() -> None:
    """A cache of the interface keeps heads and widths."""
    node = "a, ypk, ypv = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, , , , xpk[N,3,2,4], xpv[N,3,2,4])"
    assert_removal_equals_zeroing(projected(12, 12, 12, node, 12, opset=18), groups={})


@pytest.mark.parametrize("options", ["", ", unidirectional=1", ", scale=0.3", ", mask_filter_value=-100.0"])
@pytest.mark.parametrize("inputs", ["h, w1[8,36], b[36]", "h, w1[8,36]", "h, w1[8,36], b[36], int32 m[2]{4,3}"])
def test_attention_of_onnx_runtime(options: str, inputs: str) -> None:
    """The layers that make queries, keys and values are part of the node, packed in one weight."""
    model = build(f"""
        h = MatMul(x[2,4,6], w0[6,8])
        a = com.microsoft.Attention<num_heads=3{options}>({inputs})
        y = MatMul(a, w2[12,3])
    """)
    assert_removal_equals_zeroing(model, groups=[8, 3, 4, 4])


def test_attention_with_values_of_another_width() -> None:
    """The widths are stored in an attribute, which follows them."""
    model = build("""
        a = com.microsoft.Attention<num_heads=3, qkv_hidden_sizes=[12,12,18]>(x[2,4,6], w1[6,42], b[42])
        y = MatMul(a, w2[18,3])
    """)
    assert_removal_equals_zeroing(model, groups=[3, 4, 6])


def test_attention_of_onnx_runtime_that_goes_on() -> None:
    """With a cache keys and values have one width, which the interface keeps."""
    model = build("""
        h = Identity(x[2,4,6])
        a, ypresent = com.microsoft.Attention<num_heads=3, unidirectional=1>(h, w1[6,36], b[36], , xpast[2,2,3,5,4])
        y = MatMul(a, w2[12,3])
    """)
    assert_removal_equals_zeroing(model, groups={})


@pytest.mark.parametrize("packed", [False, True])
def test_group_query_attention(packed: bool) -> None:
    """The cache keeps heads of keys and values; the queries that share one go evenly, with a packed weight too."""
    cache = "xpk[2,2,5,16], xpv[2,2,5,16], int32 lengths[2]{3,3}, int32 total[1]{4}, cos[9,8], sin[9,8]"
    options = "num_heads=6, kv_num_heads=2, do_rotary=1"
    inputs = f"q, , , {cache}" if packed else f"q, k, v, {cache}"
    model = build(f"""
        q = MatMul(x[2,1,6], w1[6,{160 if packed else 96}])
        {"" if packed else "k = MatMul(x, w2[6,32])"}
        {"" if packed else "v = MatMul(x, w3[6,32])"}
        a, ypk, ypv = com.microsoft.GroupQueryAttention<{options}>({inputs})
        y = MatMul(a, w4[96,3])
    """)
    assert_removal_equals_zeroing(model, groups=[3])


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention(rule: str) -> None:
    """As attention, with a state in place of the softmax, which may forget."""
    decay = "g" if "gated" in rule else ""
    rate = "r" if "delta" in rule else ""
    node = (
        f'a, state = LinearAttention<q_num_heads=6, kv_num_heads=2, update_rule="{rule}">(q, k, v, , {decay}, {rate})'
    )
    made = "g0 = MatMul(x, w5[6,8])\n g = Softsign(g0)\n" if decay else ""
    made += "r0 = MatMul(x, w6[6,2])\n r = Sigmoid(r0)" if rate else ""
    assert_removal_equals_zeroing(projected(24, 8, 8, node, 24, extra=made, opset=27), groups=[2, 3, 4, 4])


def test_a_width_that_stands_in_weights_alone_is_known_again_in_the_masked_form() -> None:
    """The width of queries and keys inside the node stays exact beside channels that a mean runs over."""
    model = build("""
        a = MatMul(x[2,7,5], w1[5,4])
        m = ReduceMean(a, last{2})
        b = Mul(a, m)
        c = com.microsoft.Attention<num_heads=1>(a, w2[4,6], w3[6])
        y0 = MatMul(c, w4[2,3])
        y1 = MatMul(b, w5[4,3])
    """)
    couplings = assert_removal_equals_zeroing(model, groups=[2, 2], inexact={"a": 4})
    assert_removal_equals_masking(couplings)
