"""Refitting layers that run along time."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.repairing import gate_fit, passages
from onnxprune.repairing.recurrent import recurrent_steps
from onnxprune.repairing.repair import repair
from onnxprune.rewriting.rewrite import rewrite
from tests.bundled import FIXTURES, data_path, digits, model_path
from tests.models import build

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
UNITS = 6


def network(kind: str, *, direction: str = "forward", given: str = "bias", more: str = "") -> ModelProto:
    """A layer that runs along time between two that do not, and all that may be given to it."""
    count = 2 if direction == "bidirectional" else 1
    rows = GATES[kind] * UNITS
    inputs = [f"w[{count},{rows},5]", f"r[{count},{rows},{UNITS}]"]
    inputs.append(f"b[{count},{2 * rows}]" if "bias" in given else "''")
    inputs.append("int32 lengths[3]{4,7,2}" if "lengths" in given else "''")
    inputs.append(f"h0[{count},3,{UNITS}]" if "start" in given else "''")
    if kind == "LSTM" and "start" in given:
        inputs.append(f"c0[{count},3,{UNITS}]")
    while inputs[-1] == "''":
        inputs.pop()
    listed = ", ".join(inputs).replace("''", "")
    return build(f"""
        e = MatMul(x[7,3,4], we[4,5])
        a = Tanh(e)
        h = {kind}<hidden_size={UNITS}, direction="{direction}"{more}>(a, {listed})
        s = Transpose<perm=[0,2,1,3]>(h)
        f = Reshape(s, shape{{7,3,{count * UNITS}}})
        y = MatMul(f, wy[{count * UNITS},3])
    """)


def sequences(couplings: Couplings, count: int = 60) -> Calibration:
    return gather(couplings.graph, {"x": np.random.default_rng(0).standard_normal((count, 7, 3, 4)).astype(np.float32)})


def shaken(model: ModelProto, names: str) -> ModelProto:
    """The model with other numbers in some weights."""
    copy, random = ModelProto(), np.random.default_rng(1)
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in names.split():
            array = np.array(numpy_helper.to_array(tensor))
            other = array + 0.3 * random.standard_normal(array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(other, tensor.name))
    return copy


CELLS = [
    (kind, direction, given, more)
    for kind in ("LSTM", "GRU", "RNN")
    for direction in ("forward", "reverse", "bidirectional")
    for given in ("bias", "nothing", "bias lengths start")
    for more in (("", ", linear_before_reset=1") if kind == "GRU" else ("",))
]


@pytest.mark.parametrize(("kind", "direction", "given", "more"), CELLS)
def test_weights_that_were_lost_are_found_again(kind: str, direction: str, given: str, more: str) -> None:
    """From inputs and states alone, whatever the cell, its direction, its first states and the ends of sequences."""
    couplings = couple(read(network(kind, direction=direction, given=given, more=more)))
    model = shaken(couplings.graph.model, "w r b")
    (step,) = recurrent_steps(couplings)
    (refit,) = step.refit(model, {}, sequences(couplings), 1)
    assert refit.constants == (("w", "r", "b") if "bias" in given else ("w", "r"))
    assert refit.layer.before > 1e-2
    assert refit.layer.after < 1e-6


def test_a_wide_gate_is_fitted_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where equations for each unit would be too large, what input and state add is found apart."""
    monkeypatch.setattr(gate_fit, "JOINT", 0)
    couplings = couple(read(network("GRU", more=", linear_before_reset=1")))
    (step,) = recurrent_steps(couplings)
    (refit,) = step.refit(shaken(couplings.graph.model, "w r b"), {}, sequences(couplings), 1)
    assert refit.layer.after < 1e-6 < 1e-2 < refit.layer.before


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_that_is_as_it_was_stays(kind: str) -> None:
    """Nothing is better than the original's own weights."""
    couplings = couple(read(network(kind)))
    (step,) = recurrent_steps(couplings)
    (refit,) = step.refit(couplings.graph.model, {}, sequences(couplings), 1)
    assert refit.constants == ()
    assert refit.layer.penalty is None


def test_long_sequences_are_learned_from_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more batches are held in memory than may be."""
    monkeypatch.setattr(passages, "REMEMBERED", 8000)
    couplings = couple(read(network("LSTM")))
    (step,) = recurrent_steps(couplings)
    (refit,) = step.refit(shaken(couplings.graph.model, "w r b"), {}, sequences(couplings), 1)
    assert refit.layer.after < refit.layer.before


def test_mixes_of_sequences_keep_a_share_of_each() -> None:
    """All of it, or half of both; what else the layer reads is as it was."""
    (step,) = recurrent_steps(couple(read(network("LSTM", given="bias start"))))
    x = np.random.default_rng(0).standard_normal((7, 2, 5))
    feed = {step.fact.x: x, 5: np.ones((1, 2, UNITS))}
    found = passages.mixed(feed, step.fact, np.array([1, 0]), np.array([1.0, 0.5]))
    np.testing.assert_array_equal(found[step.fact.x], np.stack([x[:, 0], (x[:, 0] + x[:, 1]) / 2], 1))
    assert found[5] is feed[5]


@pytest.mark.parametrize(
    ("kind", "attributes", "inputs"),
    [
        ("LSTM", "", ", b[1,48], '', '', '', peepholes[1,18]"),
        ("LSTM", ", input_forget=1", ""),
        ("GRU", ", clip=3.0", ""),
        ("GRU", ', activations=["HardSigmoid", "Tanh"]', ""),
    ],
)
def test_a_cell_whose_gates_see_more_is_left_alone(kind: str, attributes: str, inputs: str) -> None:
    """Peepholes, gates that depend on each other, and what would have to be known of a reset gate."""
    rows = GATES[kind] * UNITS
    more = inputs.replace("''", "")
    model = build(f"y = {kind}<hidden_size=6{attributes}>(x[7,3,5], w[1,{rows},5], r[1,{rows},6]{more})")
    assert not list(recurrent_steps(couple(read(model))))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("channels", ["h", "e"])
def test_units_that_others_can_stand_in_for_go_for_free(kind: str, channels: str) -> None:
    """Of two units, or input channels, that are the same, one takes over the other's part."""
    model = network(kind)
    for tensor in model.graph.initializer:
        array = np.array(numpy_helper.to_array(tensor))
        if channels == "h" and tensor.name in ("w", "r", "b"):
            blocks = array.reshape(1, -1, UNITS, *array.shape[2:])
            blocks[:, :, 3:] = blocks[:, :, :3]
        if channels == "e" and tensor.name == "we":
            array[:, 3:] = array[:, :2]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    couplings = couple(read(model))
    samples = sequences(couplings)
    plan = plan_of(couplings, {channels: np.arange(3)})
    pruned = rewrite(couplings, plan)
    wanted, plain, mended = (
        np.stack([session_for(one).run(None, samples.at(np.array([number])))[0] for number in range(20)])
        for one in (model, pruned, repair(couplings, plan, pruned, samples).model)
    )
    largest = np.abs(wanted).max()
    assert np.abs(plain - wanted).max() > 1e-2 * largest
    assert np.abs(mended - wanted).max() < 1e-5 * largest


def test_a_layer_may_give_its_last_states_alone_and_be_told_where_sequences_end() -> None:
    """Its states are asked for all the same; steps behind the end of a sequence teach nothing."""
    model = build("""
        e = MatMul(x1[7,2,4], we[4,5])
        a = Tanh(e)
        h, last = GRU<hidden_size=6, direction="bidirectional">(a, w[2,18,5], r[2,18,6], b[2,36], int32 x2[2])
        y = MatMul(last, wy[6,3])
    """)
    next(node for node in model.graph.node if "last" in node.output).output[0] = ""
    random = np.random.default_rng(0)
    data = {
        "x1": random.standard_normal((60, 7, 2, 4)).astype(np.float32),
        "x2": random.integers(1, 8, (60, 2)).astype(np.int32),
    }
    result = prune(model, data, ratio=0.4, criterion="magnitude", compensate=True)
    layer = result.report.refitted[0]
    assert result.report.verdict.passed
    assert layer.after < 0.5 * layer.before


ACCURACY = {  # model, MACs: without and with the layer itself refitted
    ("lstm_torch", "50%"): (0.95, 0.96),
    ("lstm_keras", "50%"): (0.93, 0.935),
    ("gru_torch", "50%"): (0.95, 0.965),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "macs"), ACCURACY)
def test_recurrent_networks_keep_their_accuracy(name: str, macs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On digits that no layer was fitted to, and better than with the layers behind refitted alone."""
    without, with_it = ACCURACY[name, macs]
    with np.load(FIXTURES / "digits" / "test.npz") as archive:
        unseen = {key: archive[key] for key in archive.files}

    def accuracy() -> float:
        found = prune(model_path(name), data_path(name), macs=macs, criterion="sensitivity", compensate=True).model
        (outputs,) = session_for(found).run(None, {"x": unseen["x"]})
        return float(np.mean(outputs.argmax(-1) == unseen["labels"]))

    assert accuracy() >= with_it
    monkeypatch.setattr("onnxprune.repairing.repair.recurrent_steps", lambda couplings: ())
    assert accuracy() < without


def test_a_whole_run_proves_what_is_left() -> None:
    """All but the refitted weights are the plain slices, which equal the zeroed original."""
    result = prune(
        model_path("gru_torch"), digits("gru_torch", 100), macs="50%", criterion="magnitude", compensate=True
    )
    assert result.report.verdict.passed
    layers = {layer.layer: layer for layer in result.report.refitted}
    assert list(layers) == ["/gru/GRU", "/gru/GRU_1", "/head/Gemm", "/head/Gemm, KL of answers"]
    assert len(result.plan.refitted) == 8
    assert all(layer.after < 0.5 * layer.before for layer in [*layers.values()][:3])
