"""Recurrent networks."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.axes import product_of
from onnxprune.rules.facts import AllOf, Contracted, Equal, Fact, Macs, Recurrence, Reset, Stores, Zero
from onnxprune.rules.operation import NotUnderstood, Op
from onnxprune.rules.registry import rule
from onnxprune.rules.vocabulary import fixed, free

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SILENT_AT_ZERO = {"Tanh", "Relu", "LeakyRelu", "ScaledTanh", "Elu", "Softsign", "Affine"}
CELL_ACTIVATION = {"LSTM": 1, "GRU": 1, "RNN": 0}
"""Which of a direction's activations makes the new state; the others only gate it."""
PER_DIRECTION = {"LSTM": 3, "GRU": 2, "RNN": 1}
CARRIED = {"LSTM": ((5, 1), (6, 2)), "GRU": ((5, 1),), "RNN": ((5, 1),)}
BACKWARDS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@rule("LSTM", "GRU", "RNN")
def recurrent(op: Op) -> Iterator[Fact]:
    """
    Rows of the weights are gates times hidden units; the hidden state is read by the recurrent weights::

        x [s, n, i]   w [d, g·h, i]   r [d, g·h, h]   b [d, 2·g·h]   p [d, 3·h]   states [d, n, h]
        y [s, d, n, h]   y_h, y_c [d, n, h]        with layout=1: x [n, s, i], y [n, s, d, h], states [n, d, h]
    """
    kind = op.node.op_type
    x, w, r, bias = op.input(0), op.input(1), op.input(2), op.optional(3)
    batch_first = bool(op.attribute("layout", 0))
    time, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    direction, hidden, gates = w[0], r[2], free(GATES[kind])
    rows = product_of((gates, hidden))
    yield from fixed((gates, direction), "gates and directions")
    yield Equal(w[1], rows)
    yield Equal(r[0], direction)
    yield Equal(r[1], rows)
    yield Equal(x[2], w[2])
    if bias is not None:
        halves = free(2)
        yield from fixed((halves,), "gates and directions")
        yield Equal(bias[0], direction)
        yield Equal(bias[1], product_of((halves, rows)))
    if (lengths := op.optional(4)) is not None:
        yield Equal(lengths[0], batch)
    state = (batch, direction, hidden) if batch_first else (direction, batch, hidden)
    sequence = (batch, time, direction, hidden) if batch_first else (time, direction, batch, hidden)
    states = [tensor for tensor in (op.optional(5), op.optional(6), *op.outputs[1:]) if tensor is not None]
    for tensor in states:
        for axis, expected in zip(tensor.axes, state, strict=True):
            yield Equal(axis, expected)
    y = op.outputs[0]
    if y is not None:
        for axis, expected in zip(y.axes, sequence, strict=True):
            yield Equal(axis, expected)
    if (peepholes := op.optional(7)) is not None:
        thirds = free(3)
        yield from fixed((thirds,), "gates and directions")
        yield Equal(peepholes[0], direction)
        yield Equal(peepholes[1], product_of((thirds, hidden)))
    if "hidden_size" in op.node.attributes:
        yield Stores("hidden_size", None, hidden)
    yield Contracted(x, 2, by=(x, w))
    yield Contracted(r, 2, by=(r,))
    yield Macs((batch, time, direction, rows, w[2]))
    yield Macs((batch, time, direction, rows, hidden))
    yield from silent(op)
    yield from recurrence(op)


def recurrence(op: Op) -> Iterator[Fact]:
    """
    What the gates do something to; nothing is said where they see more than the input and the state before.

    Of a GRU's gates (update, reset, candidate) the second scales the state that the third reads.
    """
    kind = op.node.op_type
    if op.attribute("layout", 0) or op.attribute("input_forget", 0) or op.optional(7) is not None:
        return
    gating = [str(name) for name in op.attribute("activations") or []][:: PER_DIRECTION[kind]]
    if kind == "GRU" and ("clip" in op.node.attributes or any(name != "Sigmoid" for name in gating)):
        return
    yield Recurrence(
        x=0,
        weight=1,
        recurrent=2,
        bias=given(op, 3),
        lengths=given(op, 4),
        start=given(op, 5),
        others=(6,) if op.optional(6) is not None else (),
        gates=GATES[kind],
        backwards=BACKWARDS[str(op.attribute("direction", "forward"))],
        carried=CARRIED[kind],
        reset=Reset(gate=1, scaled=2, after=bool(op.attribute("linear_before_reset", 0))) if kind == "GRU" else None,
    )


def given(op: Op, index: int) -> int | None:
    """The number of an optional input, if there is one."""
    return None if op.optional(index) is None else index


def silent(op: Op) -> Iterator[Fact]:
    """A hidden unit whose weights and first state are zero stays at zero when the cell's activation maps 0 to 0."""
    kind = op.node.op_type
    activations = [str(name) for name in op.attribute("activations") or []]
    cells = activations[CELL_ACTIVATION[kind] :: PER_DIRECTION[kind]]
    if kind == "LSTM":
        cells += activations[2::3]
    if any(cell not in SILENT_AT_ZERO for cell in cells):
        return
    if "Affine" in cells:
        raise NotUnderstood("the cell's activation is affine")
    parts = [op.input(1), op.input(2), *(t for t in (op.optional(3), op.optional(5), op.optional(6)) if t is not None)]
    for result in op.results:
        yield Zero(result, AllOf(tuple(parts)))
