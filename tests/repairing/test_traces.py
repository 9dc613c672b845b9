"""Traces: what the weights of a layer that runs along time do to its states."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import couple
from onnxprune.reading.read import read
from onnxprune.repairing import recurrent
from onnxprune.repairing.cells import Cell, OneStep, Stored, Weights
from onnxprune.repairing.recurrent import RecurrentStep, firsts, recurrent_steps, states_before
from onnxprune.repairing.repair import repair
from onnxprune.repairing.traces import Run, Traces
from onnxprune.rewriting.rewrite import rewrite
from tests.repairing.test_recurrent import CELLS, UNITS, network, sequences


def silenced(model: ModelProto) -> ModelProto:
    """The model with units that do not hear of each other."""
    (tensor,) = (one for one in model.graph.initializer if one.name == "r")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.float32), "r"))
    return model


def feed_of(layer: RecurrentStep, model: ModelProto, lengths: np.ndarray) -> dict[int, np.ndarray]:
    """Random inputs of the layer by number, and its first states where it has any."""
    random, known = np.random.default_rng(0), {one.name: one for one in model.graph.initializer}
    feed = {layer.fact.x: random.standard_normal((7, 3, 5)).astype(np.float32)}
    for number, _ in layer.fact.carried:
        if number < len(layer.node.inputs) and layer.node.inputs[number]:
            feed[number] = numpy_helper.to_array(known[layer.node.inputs[number]])
    return feed if layer.fact.lengths is None else feed | {layer.fact.lengths: lengths}


@pytest.mark.parametrize(("kind", "direction", "given", "more"), CELLS)
def test_traces_foretell_the_states_of_other_weights(kind: str, direction: str, given: str, more: str) -> None:
    """Of any small change of a unit's weights, at every step, where units do not hear of each other."""
    model = silenced(network(kind, direction=direction, given=given, more=more))
    (layer,) = recurrent_steps(couple(read(model)))
    lengths = np.array([4, 7, 2], np.int32)
    stored, feed = Stored(model, layer.node.outputs[0], layer.fact), feed_of(layer, model, lengths)
    cell, directions = Cell(stored, model, layer.fact), list(stored.directions())
    states = cell.states(feed, directions)
    before = states_before(states, feed, layer.fact)
    ends = np.full(3, 7) if layer.fact.lengths is None else lengths
    for number, weights in enumerate(directions):
        traces = Traces(OneStep(stored, model, layer.fact), layer.fact, number, weights)
        first = firsts(feed, layer.fact, before)[:, number]
        valid = np.arange(7)[:, None] < ends
        run = Run(feed[layer.fact.x], before[number], first, valid, layer.fact.backwards[number])
        by = 1e-3 * np.random.default_rng(1).standard_normal((UNITS, traces.features))
        moved: list[Weights] = [traces.changed(by) if one == number else other for one, other in enumerate(directions)]
        if layer.fact.bias is None:
            moved = [replace(one, input_bias=0 * one.input_bias) for one in moved]
        apart = (cell.states(feed, moved) - states)[number]
        for time, rows in traces.of(run):
            foretold = np.einsum("unf,uf->nu", rows, by)[valid[time]]
            np.testing.assert_allclose(foretold, apart[time][valid[time]], atol=2e-2 * np.abs(apart).max())


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_states_come_closer_than_by_sums_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When units are gone that the others cannot stand in for, and gates differ in what their sums do to a state."""
    couplings = couple(read(network(kind)))
    samples, plan = sequences(couplings, 200), plan_of(couplings, {"h": np.arange(3)})

    def error() -> float:
        return repair(couplings, plan, rewrite(couplings, plan), samples).layers[0].after

    found = error()
    monkeypatch.setattr(recurrent, "TRACE_PASSES", 0)
    assert found < 0.9 * error()


def test_a_layer_of_many_weights_is_fitted_to_its_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where equations of all weights of a unit would be too large."""
    couplings = couple(read(network("LSTM")))
    plan = plan_of(couplings, {"h": np.arange(3)})
    monkeypatch.setattr(recurrent, "JOINT", 0)
    monkeypatch.setattr(Traces, "of", lambda *arguments: pytest.fail("No trace is wanted."))
    assert repair(couplings, plan, rewrite(couplings, plan), sequences(couplings)).refitted
