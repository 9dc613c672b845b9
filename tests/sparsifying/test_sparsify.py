"""Weights of a model: as many zeros as were asked for, where they were asked for, and the answers stay."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import DataError, UsageError
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import Calibration, gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.repairing.places import tensor_named
from onnxprune.sparsifying.checking import check_sparsity
from onnxprune.sparsifying.sparsify import Criterion, Sparsified, sparsify
from onnxprune.sparsifying.sparsity import Sparsity, sparsity
from tests.bundled import FIXTURES, bundled, digits, model_path
from tests.models import build

CONVOLUTIONS = """
    h = Conv<pads=[1,1,1,1]>(x[N,3,5,5], w1[6,3,3,3], b1[6])
    a = Relu(h)
    c = Conv<strides=[2,2]>(a, w2[10,6,3,3], b2[10])
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    g = MatMul(f, w3[10,7])
    y = Add(g, b3[7])
"""


def setting(text: str = CONVOLUTIONS, count: int = 40) -> tuple[Couplings, Calibration]:
    """A model as text, and random samples that pass for real ones."""
    couplings = couple(read(build(text)))
    rng = np.random.default_rng(0)
    shapes = {port.name: couplings.graph.input_shapes[port.name][1:] for port in couplings.graph.inputs}
    arrays = {name: rng.standard_normal((count, *shape)).astype(np.float32) for name, shape in shapes.items()}
    return couplings, gather(couplings.graph, arrays)


def zeros_in(model: ModelProto, name: str) -> int:
    tensor = tensor_named(model, name)
    assert tensor is not None
    return int((numpy_helper.to_array(tensor) == 0).sum())


def assert_proven(couplings: Couplings, made: Sparsified) -> None:
    """The check holds."""
    found = check_sparsity(couplings.graph.model, made.model, made.layers, made.constants)
    assert found.passed, found.detail


def accuracy(model: ModelProto) -> float:
    """On test digits."""
    with np.load(FIXTURES / "digits" / "test.npz") as archive:
        arrays = {name: archive[name][:1000] for name in archive.files}
    labels = arrays.pop("labels")
    return float((session_for(model).run(None, arrays)[0].argmax(1) == labels).mean())


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_nothing_changes_at_zero(criterion: Criterion) -> None:
    """No weight, no bias."""
    couplings, calibration = setting()
    made = sparsify(couplings, calibration, "0%", criterion=criterion)
    assert made.model == couplings.graph.model
    assert made.constants == ()


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_zeros_are_those_asked_for(share: float, criterion: Criterion) -> None:
    """Over all layers together at least the share, and at most one weight more; the model loads and runs."""
    couplings, calibration = setting()
    made = sparsify(couplings, calibration, share, criterion=criterion)
    size = sum(layer.size for layer in made.layers)
    assert size == 6 * 27 + 10 * 54 + 70
    assert share * size <= sum(layer.zeros for layer in made.layers) < share * size + 1
    assert [zeros_in(made.model, layer.weight) for layer in made.layers] == [layer.zeros for layer in made.layers]
    assert_proven(couplings, made)
    session_for(made.model).run(None, calibration.at(np.arange(3)))


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "3:7"])
def test_patterns_hold_in_every_block(pattern: str, criterion: Criterion) -> None:
    """Along channels, at each place of a kernel; 3, 6 and 10 channels are no multiple of a block."""
    couplings, calibration = setting()
    made = sparsify(couplings, calibration, pattern, criterion=criterion)
    assert_proven(couplings, made)
    weight = numpy_helper.to_array(tensor_named(made.model, "w2"))
    stay, block = map(int, pattern.split(":"))
    for out, row, column in np.ndindex(10, 3, 3):
        for start in range(0, 6, block):
            assert np.count_nonzero(weight[out, start : start + block, row, column]) <= stay


def test_layers_get_shares_of_their_own() -> None:
    """A layer whose inputs say the same twice loses more than the others."""
    text = "h = Gemm(x[N,6], w1[6,16], b1[16])\n a = Relu(h)\n t = Concat<axis=1>(a, a)\n y = Gemm(t, w2[32,5], b2[5])"
    couplings, calibration = setting(text, 300)
    shares = {layer.weight: layer.zeros / layer.size for layer in sparsify(couplings, calibration, "40%").layers}
    assert shares["w2"] > 0.45
    assert shares["w1"] < shares["w2"]


def test_the_order_of_samples_matters_little() -> None:
    """Which samples are held out may change; what the model answers does not, by much."""
    couplings, calibration = setting(count=120)
    turned = calibration.only(np.random.default_rng(1).permutation(120))
    feed = calibration.at(np.arange(120))
    outputs = [
        session_for(model).run(None, feed)[0]
        for model in (
            couplings.graph.model,
            sparsify(couplings, calibration, "60%").model,
            sparsify(couplings, turned, "60%").model,
        )
    ]
    spread = outputs[0].std()
    assert np.abs(outputs[1] - outputs[2]).mean() < 0.15 * spread
    assert np.abs(outputs[1] - outputs[0]).mean() < 0.25 * spread


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
def test_fitting_never_loses_on_samples_held_out(criterion: Criterion) -> None:
    """A layer for which no fit helps has plain zeros."""
    couplings, calibration = setting()
    for layer in sparsify(couplings, calibration, "70%", criterion=criterion).layers:
        if layer.before is not None and layer.after is not None:
            assert layer.after <= layer.before
        assert (layer.before is None) == (layer.zeros == 0)


@pytest.mark.parametrize(("criterion", "refit"), [("obs", True), ("magnitude", True), ("magnitude", False)])
def test_without_a_refit_other_numbers_stay(criterion: Criterion, refit: bool) -> None:
    """Then only weights are named as changed, and each is zero or as it was; else biases move too."""
    couplings, calibration = setting()
    made = sparsify(couplings, calibration, "50%", criterion=criterion, refit=refit)
    assert bool({"b1", "b2", "b3"} & set(made.constants)) == refit
    before, after = (numpy_helper.to_array(tensor_named(m, "w2")) for m in (couplings.graph.model, made.model))
    assert bool(((after == before) | (after == 0)).all()) != refit


def test_weights_that_others_read_stay() -> None:
    """A matrix that two layers share is no single layer's to change."""
    text = "a = MatMul(x[N,6], w1[6,6])\n b = Relu(a)\n c = MatMul(b, w1)\n d = Relu(c)\n y = MatMul(d, w2[6,4])"
    couplings, calibration = setting(text)
    made = sparsify(couplings, calibration, "50%")
    assert [layer.weight for layer in made.layers] == ["w2"]
    assert_proven(couplings, made)


def test_answers_stay_where_smallest_numbers_lose_them() -> None:
    """The network of two layers with a tenth of its weights left."""
    couplings = bundled("mlp_torch")
    calibration = gather(couplings.graph, digits("mlp_torch", 1000))
    by_obs = accuracy(sparsify(couplings, calibration, "90%").model)
    by_size = accuracy(sparsify(couplings, calibration, "90%", criterion="magnitude", refit=False).model)
    assert by_obs > accuracy(couplings.graph.model) - 0.015
    assert by_size < by_obs - 0.1


def test_a_pruned_model_can_lose_weights_too() -> None:
    """Channels first, then weights of what is left: read and coupled anew."""
    name = "mlp_torch"
    pruned = prune(model_path(name), digits(name, 300), macs="60%", criterion="magnitude", compensate=True).model
    couplings = couple(read(pruned))
    made = sparsify(couplings, gather(couplings.graph, digits(name, 300)), "2:4")
    assert_proven(couplings, made)
    assert made.share == pytest.approx(0.5, abs=0.01)
    assert accuracy(made.model) > accuracy(pruned) - 0.03


def test_made_up_samples_do_for_magnitude_alone() -> None:
    """Nothing is fitted on them, and obs asks for real ones."""
    couplings, _ = setting()
    made_up = gather(couplings.graph, None)
    made = sparsify(couplings, made_up, "50%", criterion="magnitude")
    assert all(layer.penalty is None for layer in made.layers)
    assert_proven(couplings, made)
    with pytest.raises(DataError, match=r"found none\. Pass data with --data, or take the criterion magnitude"):
        sparsify(couplings, made_up, "50%")


def test_too_few_samples_are_said() -> None:
    """Some are held out, so there must be some."""
    couplings, calibration = setting()
    with pytest.raises(DataError, match="at least 5 samples to fit weights on, found 3"):
        sparsify(couplings, calibration.first(3), "50%")


def test_a_model_without_such_layers_is_refused() -> None:
    """And an unknown criterion."""
    couplings, calibration = setting("y = Relu(x[N,4])")
    with pytest.raises(UsageError, match=r"found none\. Prune channels instead"):
        sparsify(couplings, calibration, "50%")
    with pytest.raises(UsageError, match="among obs, magnitude, found 'size'"):
        sparsify(couplings, calibration, "50%", criterion="size")  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50%", Sparsity(0.5)),
        ("0.25", Sparsity(0.25)),
        (0, Sparsity(0.0)),
        ("2:4", Sparsity(0.5, (2, 4))),
        (" 1 : 8 ", Sparsity(0.875, (1, 8))),
        (Sparsity(0.3), Sparsity(0.3)),
    ],
)
def test_sparsities_are_read(text: str | float | Sparsity, expected: Sparsity) -> None:
    """Shares as people write them, and patterns."""
    assert sparsity(text) == expected


@pytest.mark.parametrize("text", ["100%", "1", "-5%", "half", "4:4", "0:4", "5:4", "2:128", "2:", "", "1e-3", "nan"])
def test_what_is_no_sparsity_is_refused(text: str) -> None:
    """With what was expected, and what was found."""
    with pytest.raises(UsageError, match=r"such as 50% or 0.5, or a pattern such as 2:4 .* found .*Give one of these"):
        sparsity(text)
