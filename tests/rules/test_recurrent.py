"""Recurrent networks."""

from __future__ import annotations

import pytest

from tests.models import build, definitions
from tests.oracle import assert_inexact, assert_removal_equals_zeroing

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
KINDS = ("LSTM", "GRU", "RNN")


def layer(kind: str, *, directions: int = 1, attributes: str = "", bias: bool = True, more: str = "") -> str:
    """A layer of 6 hidden units that reads x [7, N, 5], and one that reads its sequence."""
    direction = {1: "forward", 2: "bidirectional"}[directions]
    rows = GATES[kind] * 6
    b = f"b[{directions},{2 * rows}]" if bias else ""
    return (
        f'h, last = {kind}<hidden_size=6, direction="{direction}"{attributes}>'
        f"(x[7,N,5], w[{directions},{rows},5], r[{directions},{rows},6], {b}{more})"
    )


@pytest.mark.parametrize(("kind", "opset"), [(kind, opset) for kind in KINDS for opset in definitions(kind)])
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_hidden_units(kind: str, directions: int, bias: bool, opset: int) -> None:
    """A hidden unit goes with its rows in every gate, its columns, and what reads it."""
    model = build(
        f"""
        {layer(kind, directions=directions, bias=bias)}
        back = Transpose<perm=[0,2,1,3]>(h)
        merged = Reshape(back, s{{0,0,-1}})
        y = MatMul(merged, out[{6 * directions},3])
        y2 = MatMul(last, out2[6,2])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize("kind", KINDS)
def test_backwards(kind: str) -> None:
    """One direction, from the end."""
    rows = GATES[kind] * 6
    model = build(f"""
        h = {kind}<hidden_size=6, direction="reverse">(x[7,N,5], w[1,{rows},5], r[1,{rows},6], b[1,{2 * rows}])
        s = Squeeze(h, one{{1}})
        y = MatMul(s, out[6,3])
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers(kind: str) -> None:
    """The hidden units of the first layer are the input of the second."""
    rows = GATES[kind] * 4
    model = build(f"""
        {layer(kind)}
        s = Squeeze(h, one{{1}})
        , last2 = {kind}<hidden_size=4>(s, w2[1,{rows},6], r2[1,{rows},4], b2[1,{2 * rows}])
        z = Squeeze(last2, zero{{0}})
        y = MatMul(z, out[4,3])
    """)
    assert_removal_equals_zeroing(model, groups=[6, 4])


@pytest.mark.parametrize("kind", KINDS)
def test_states_at_first(kind: str) -> None:
    """States that are weights are sliced along, and zeroed they make silent units."""
    cells = ", c0[1,2,6]" if kind == "LSTM" else ""
    model = build(f"""
        {layer(kind, more=f", , h0[1,2,6]{cells}").replace("[7,N,5]", "[7,2,5]")}
        s = Squeeze(h, one{{1}})
        t = Transpose<perm=[0,2,1]>(s)
        y = MatMul(s, t)
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_start_at_zeros_made_for_the_batch(kind: str) -> None:
    """A state made of zeros at run time follows the hidden units in size."""
    cells = ", h0" if kind == "LSTM" else ""
    model = build(f"""
        all = Shape(x[7,N,5])
        batch = Slice(all, one{{1}}, two{{2}})
        sizes = Concat<axis=0>(one, batch, six{{6}})
        h0 = ConstantOfShape(sizes)
        {layer(kind, more=f", , h0{cells}").replace("x[7,N,5]", "x")}
        s = Squeeze(h, one)
        t = Transpose<perm=[0,2,1]>(s)
        y = MatMul(s, t)
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_of_sequences(kind: str) -> None:
    """Lengths count time, not units."""
    model = build(f"""
        {layer(kind, more=", int32 lengths[2]{3,7}").replace("[7,N,5]", "[7,2,5]")}
        y = MatMul(last, out[6,3])
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize("directions", [1, 2])
def test_peepholes(directions: int) -> None:
    """The three gates of an LSTM that look at the cell."""
    model = build(f"""
        {layer("LSTM", directions=directions, more=f", , , , peep[{directions},18]")}
        y = MatMul(h, out[6,3])
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize("before", [0, 1])
def test_gru_with_linear_before_reset(before: int) -> None:
    """Both ways of the reset gate."""
    model = build(f"""
        {layer("GRU", attributes=f", linear_before_reset={before}")}
        y = MatMul(h, out[6,3])
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize(
    ("kind", "activations"),
    [
        ("LSTM", '"Sigmoid", "Softsign", "Relu"'),
        ("LSTM", '"HardSigmoid", "Tanh", "Tanh"'),
        ("GRU", '"Sigmoid", "Relu"'),
        ("RNN", '"Relu"'),
        ("RNN", '"Elu"'),
    ],
)
def test_activations_that_keep_zero(kind: str, activations: str) -> None:
    """A zeroed unit is silent when the cell's activation keeps zero."""
    model = build(f"""
        {layer(kind, attributes=f", activations=[{activations}]")}
        s = Squeeze(h, one{{1}})
        t = Transpose<perm=[0,2,1]>(s)
        y = MatMul(s, t)
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})


@pytest.mark.parametrize(
    ("kind", "activations"),
    [
        ("LSTM", '"Sigmoid", "Sigmoid", "Tanh"'),
        ("LSTM", '"Sigmoid", "Tanh", "Sigmoid"'),
        ("GRU", '"Tanh", "Sigmoid"'),
        ("RNN", '"Sigmoid"'),
    ],
)
def test_activations_that_move_zero(kind: str, activations: str) -> None:
    """A zeroed unit speaks when the cell's activation moves zero: only weights may read it."""
    before = layer(kind, attributes=f", activations=[{activations}]")
    assert_removal_equals_zeroing(build(f"{before}\n y = MatMul(h, out[6,3])"), groups={"h": 6})
    product = "s = Squeeze(h, one{1})\n t = Transpose<perm=[0,2,1]>(s)\n y = MatMul(s, t)"
    assert_inexact(build(f"{before}\n {product}"), {"h": 6})


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_cast_or_dequantised(kind: str) -> None:
    """Zeros of weights in which the units stand in rows and in columns pass the nodes before the cell."""
    rows = GATES[kind] * 6
    model = build(f"""
        w = Cast<to=1>(float16 w0[1,{rows},5])
        r = DequantizeLinear(uint8 r0[1,{rows},6], scale[]{{0.005}}, uint8 zero[]{{128}})
        h = {kind}<hidden_size=6>(x[7,N,5], w, r)
        y = ReduceSum<keepdims=0>(h, over{{3}})
    """)
    assert_removal_equals_zeroing(model, groups={"h": 6})
