"""Tangents: what the weights of a layer that runs along time do to its states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import couple
from onnxprune.reading.read import read
from onnxprune.repairing import recurrent
from onnxprune.repairing.cells import Cell, OneStep, Stored, Weights
from onnxprune.repairing.passages import firsts, states_before
from onnxprune.repairing.recurrent import RecurrentStep, recurrent_steps
from onnxprune.repairing.repair import repair
from onnxprune.repairing.tangents import Run, Tangents
from onnxprune.rewriting.rewrite import rewrite
from tests.repairing.test_recurrent import CELLS, network, sequences

Foretold = Callable[[Weights], np.ndarray]


def feed_of(layer: RecurrentStep, model: ModelProto, lengths: np.ndarray) -> dict[int, np.ndarray]:
    """Random inputs of the layer by number, and its first states where it has any."""
    random, known = np.random.default_rng(0), {one.name: one for one in model.graph.initializer}
    feed = {layer.fact.x: random.standard_normal((7, 3, 5)).astype(np.float32)}
    for number, _ in layer.fact.carried:
        if number < len(layer.node.inputs) and layer.node.inputs[number]:
            feed[number] = numpy_helper.to_array(known[layer.node.inputs[number]])
    return feed if layer.fact.lengths is None else feed | {layer.fact.lengths: lengths}


def tangents_of(layer: RecurrentStep, model: ModelProto, number: int) -> tuple[Tangents, Foretold]:
    """One direction's in a run, and what really comes of a change of its weights."""
    lengths = np.array([4, 7, 2], np.int32)
    stored, feed = Stored(model, layer.node.outputs[0], layer.fact), feed_of(layer, model, lengths)
    cell, directions = Cell(stored, model, layer.fact), list(stored.directions())
    states = cell.states(feed, directions)
    before = states_before(states, feed, layer.fact)
    ends = np.full(3, 7) if layer.fact.lengths is None else lengths
    order = slice(None, None, -1 if layer.fact.backwards[number] else 1)
    valid = (np.arange(7)[:, None] < ends)[order]
    first = firsts(feed, layer.fact, before)[:, number]
    run = Run(feed[layer.fact.x][order], before[number][order], first, np.zeros_like(before[number]), valid)

    def apart(weights: Weights) -> np.ndarray:
        moved = [weights if one == number else other for one, other in enumerate(directions)]
        return np.asarray((cell.states(feed, moved) - states)[number][order] * valid[..., None])

    return Tangents(OneStep(stored, model, layer.fact), layer.fact, number, directions[number], [run]), apart


@pytest.mark.parametrize(("kind", "direction", "given", "more"), CELLS)
def test_tangents_foretell_the_states_of_other_weights(kind: str, direction: str, given: str, more: str) -> None:
    """Of any small change of all weights, at every step."""
    model = network(kind, direction=direction, given=given, more=more)
    (layer,) = recurrent_steps(couple(read(model)))
    for number in range(len(layer.fact.backwards)):
        tangents, apart = tangents_of(layer, model, number)
        by = 1e-3 * np.random.default_rng(1).standard_normal(tangents.allowed.shape) * tangents.allowed
        found = apart(tangents.changed(by))
        np.testing.assert_allclose(tangents.forward(by), found, atol=1e-2 * np.abs(found).max())


@pytest.mark.parametrize(("kind", "direction", "given", "more"), CELLS)
def test_the_way_back_is_that_forward_turned_round(kind: str, direction: str, given: str, more: str) -> None:
    """⟨forward(weights), states⟩ is ⟨weights, backward(states)⟩, for all of either."""
    model = network(kind, direction=direction, given=given, more=more)
    (layer,) = recurrent_steps(couple(read(model)))
    tangents, _ = tangents_of(layer, model, 0)
    random = np.random.default_rng(2)
    by = random.standard_normal(tangents.allowed.shape) * tangents.allowed
    there = tangents.forward(by)
    states = random.standard_normal(there.shape).astype(np.float32)
    np.testing.assert_allclose((there * states).sum(), (by * tangents.backward(states)).sum(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_states_come_closer_than_by_sums_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When units are gone that the others cannot stand in for, and gates differ in what their sums do to a state."""
    couplings = couple(read(network(kind)))
    samples, plan = sequences(couplings, 200), plan_of(couplings, {"h": np.arange(3)})

    def error() -> float:
        return repair(couplings, plan, rewrite(couplings, plan), samples).layers[0].after

    found = error()
    monkeypatch.setattr(recurrent, "STATE_PASSES", 0)
    assert found < 0.9 * error()


def test_a_layer_of_many_weights_is_fitted_to_its_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps towards the states would take too long."""
    couplings = couple(read(network("LSTM")))
    plan = plan_of(couplings, {"h": np.arange(3)})
    monkeypatch.setattr(recurrent, "MOST_WORK", 0)
    monkeypatch.setattr(Tangents, "path", lambda *arguments: pytest.fail("No tangent is wanted."))
    assert repair(couplings, plan, rewrite(couplings, plan), sequences(couplings)).refitted
