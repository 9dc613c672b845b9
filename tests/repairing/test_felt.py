"""Fitting layers to what is felt of their outputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper

from onnxprune.choosing.plan import plan_of
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing import fitting
from onnxprune.repairing.behind import Behind, Felt, behind
from onnxprune.repairing.consumers import consumers
from onnxprune.repairing.felt import Effect, Rows, Start, Task
from onnxprune.repairing.least_squares import NormalEquations
from onnxprune.repairing.repair import repair
from onnxprune.rewriting.rewrite import rewrite
from tests.models import build

FIRST = """    a = Conv(x[N,3,6,7], w1[8,3,3,3], b1[8])
    r = Relu(a)
    m = Conv(r, w0[6,8,1,1], b0[6])
    n = Relu(m)
"""
BEHIND = {
    "a rectifier": ("c = Conv(n, w2[8,6,1,1], b2[8])", "d = Relu(c)", "d", 0),
    "statistics and bounds": (
        "c = Conv(n, w2[8,6,1,1])",
        "e = BatchNormalization(c, scale[8], shift[8], mean[8], variance[8])\n"
        "    d = Clip(e, float lo{0.0}, float hi{6.0})",
        "d",
        0,
    ),
    "a product with itself": ("c = Conv(n, w2[8,6,1,1])", "e = Sigmoid(c)\n    d = Mul(c, e)", "d", 0),
    "another branch": ("c = Conv(n, w2[8,6,1,1])", "e = Add(c, r)\n    d = Relu(e)", "d", 1),
    "a gate of each channel": (
        "p = GlobalAveragePool(r)\n    q = Sigmoid(p)\n    c = Conv(n, w2[8,6,1,1])",
        "d = Mul(c, q)",
        "d",
        1,
    ),
    "a number for each place": ("c = Conv(n, w2[8,6,1,1])", "e = Add(c, places[1,1,4,5])\n    d = Relu(e)", "d", 1),
}


def layered(kind: str) -> tuple[Couplings, Behind | None]:
    """A model with the second of three convolutions in front of something, and what is found behind it."""
    layer, then, _, _ = BEHIND[kind]
    couplings = couple(read(build(f"{FIRST}    {layer}\n    {then}\n    y = Conv(d, w3[4,8,1,1])\n")))
    (consumer,) = (one for one in consumers(couplings) if one.output == "c")
    return couplings, behind(couplings, consumer)


def images(couplings: Couplings, count: int = 60) -> Calibration:
    return gather(couplings.graph, {"x": np.random.default_rng(0).standard_normal((count, 3, 6, 7)).astype(np.float32)})


@pytest.mark.parametrize("kind", BEHIND)
def test_what_is_behind_a_layer_reaches_to_where_places_mix(kind: str) -> None:
    """Up to the one tensor that others read, with what comes from elsewhere."""
    _, found = layered(kind)
    assert found is not None
    assert (found.felt, len(found.given)) == BEHIND[kind][2:]


@pytest.mark.parametrize("kind", BEHIND)
def test_it_is_run_on_rows_as_in_the_model(kind: str) -> None:
    """Any rows of a layer's outputs, with those of what else is read."""
    couplings, one = layered(kind)
    assert one is not None
    model = couplings.graph.model
    (consumer,) = (each for each in consumers(couplings) if each.output == "c")
    names = ["c", one.felt, *(given.name_in(model) for given in one.given)]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    computed = [name for name in names if name not in constants]
    values = dict(
        zip(computed, session_for(up_to(model, computed)).run(None, images(couplings).at([0, 1])), strict=True)
    )
    shape = values["c"].shape
    every = [values[name] if name in values else numpy_helper.to_array(constants[name]) for name in names]
    made, felt, *given = (np.moveaxis(np.broadcast_to(part, shape), 1, -1).reshape(-1, 8)[::3] for part in every)
    np.testing.assert_allclose(Felt(model, one, consumer)(made, given), felt, atol=1e-5)


@pytest.mark.parametrize("text", ["y = Conv(c, w3[4,8,1,1])", "d = MaxPool<kernel_shape=[2,2]>(c)\n    y = Relu(d)"])
def test_nothing_is_behind_a_layer_that_is_read_in_other_ways(text: str) -> None:
    """By another layer, or by what looks at neighbours."""
    couplings = couple(read(build(f"{FIRST}    c = Conv(n, w2[8,6,1,1])\n    {text}\n")))
    (consumer,) = (one for one in consumers(couplings) if one.output == "c")
    assert behind(couplings, consumer) is None


EFFECTS: dict[str, Effect] = {
    "rectifier": lambda made, given: np.maximum(made, 0),
    "bounds": lambda made, given: np.clip(made, -0.5, 0.5),
    "smooth": lambda made, given: np.tanh(made),
    "sum": lambda made, given: np.maximum(2 * made + given[0], 0),
    "gate": lambda made, given: made * given[0],
}


def problem(effect: Effect, random: np.random.Generator) -> tuple[Task, Start]:
    """Features of which some are gone, so that no weights make all that is wanted."""
    x = np.concatenate([random.standard_normal((600, 12)), np.ones((600, 1))], axis=1)
    wanted = (x @ random.standard_normal((13, 5))).astype(np.float32)
    other = random.standard_normal((600, 5)).astype(np.float32)
    given = (other + 0.3 * random.standard_normal((600, 5)).astype(np.float32),)
    left = x[:, 6:].astype(np.float32)
    equations = NormalEquations(6, 5)
    equations.add(left[:, :-1], wanted)
    task = Task(Rows(left[None], wanted, effect(wanted, (other,)), given), effect)
    start = Start.of([equations], np.zeros((1, 7, 5)), [1e-6], constant_is_free=True, rows=600)
    return task, start


@pytest.mark.parametrize("name", EFFECTS)
def test_steps_bring_what_is_felt_closer_than_least_squares(name: str) -> None:
    """Whatever the layer's outputs are put through."""
    task, start = problem(EFFECTS[name], np.random.default_rng(0))
    first = task.error(start.weights)
    last = task.error([*task.steps(start, 12)][-1])
    assert last < 0.97 * first


@pytest.mark.parametrize("name", ["rectifier", "bounds", "smooth"])
def test_steps_end_where_no_small_change_is_better(name: str) -> None:
    """Of random changes around the last weights, none takes away more than a trace of what is left."""
    task, start = problem(EFFECTS[name], np.random.default_rng(1))
    *_, last = task.steps(start, 60)
    errors, random = task.error(last), np.random.default_rng(2)
    for _ in range(20):
        around = last + 1e-2 * random.standard_normal(last.shape)
        assert task.error(around) > 0.99 * errors


def test_what_is_felt_in_proportion_needs_no_steps() -> None:
    """Least squares has done all there is to do."""
    straight: Callable[..., np.ndarray] = lambda made, given: 2 * made + 1  # noqa: E731
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 50, 4)).astype(np.float32)
    made = random.standard_normal((50, 3)).astype(np.float32)
    assert not Task(Rows(x, made, straight(made, ()), ()), straight).bends
    assert Task(Rows(x, made, np.maximum(made, 0), ()), EFFECTS["rectifier"]).bends


@pytest.mark.parametrize("kind", BEHIND)
def test_what_is_felt_comes_closer_on_samples_that_no_layer_was_fitted_to(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the channels that the layer reads go. A gate that hardly varies bends nothing: there it is no worse."""
    couplings, one = layered(kind)
    assert one is not None
    plan = plan_of(couplings, {"m": np.arange(3)})
    unseen = {"x": np.random.default_rng(5).standard_normal((60, 3, 6, 7)).astype(np.float32)}

    def error() -> float:
        found = repair(couplings, plan, rewrite(couplings, plan), images(couplings, 120)).model
        models = (up_to(model, [one.felt]) for model in (couplings.graph.model, found))
        wanted, made = (session_for(model).run(None, unseen)[0] for model in models)
        return float(np.square(wanted - made).sum())

    felt = error()
    monkeypatch.setattr(fitting, "behind", lambda *arguments: None)
    assert felt < (1.001 if kind == "a gate of each channel" else 0.99) * error()
