"""Width curves: the loss at each width is that of the model really pruned to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from pydantic import TypeAdapter

from onnxprune.coupling.couple import Couplings, Group, couple
from onnxprune.errors import UsageError
from onnxprune.probing.curves import SHARES, Repair, WidthCurve, WidthCurves, width_curves
from onnxprune.probing.engine.means import Means
from onnxprune.probing.probe import probe
from onnxprune.probing.proxies import chances, magnitudes
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.reading.read import read
from tests.bundled import bundled, digits
from tests.choosing.graphs import nine_neurons, scored, three_layers
from tests.probing.engines import exact, without
from tests.probing.losses import IN_NUMPY, Outputs, furthest, outputs_of

SAMPLES = 8
TOLERANCE = {"rel": 2e-4, "abs": 2e-5}

FEW_SHARES = (0, 0.2, 0.5, 0.8)

HEADS = {"mlp_torch": "output.weight", "lstm_torch": "head.weight", "gru_torch": "head.weight"}
"""The weights of the Gemm that reads the only group."""


def curves_of(
    couplings: Couplings,
    scores: Sensitivities,
    name: str,
    loss: str = "distance",
    *,
    shares: Sequence[float] = SHARES,
    repair: Repair | None = None,
) -> WidthCurves:
    """The curves of some of a bundled model's groups on the first digits."""
    return width_curves(
        couplings,
        scores,
        digits(name, SAMPLES),
        loss,
        shares=shares,
        repair=repair,
        samples=SAMPLES,
        means=Means(jobs=1),
    )


@cache
def by_magnitude(name: str, places: tuple[int, ...] = (0,)) -> Sensitivities:
    """The magnitudes in the exact groups at these places."""
    groups = exact(bundled(name))
    return magnitudes(bundled(name), [groups[place] for place in places])


@cache
def original(name: str) -> Outputs:
    """What the bundled model says of the first digits."""
    return outputs_of(bundled(name).graph.model, digits(name, SAMPLES))


def loss_in_numpy(model: ModelProto, name: str, loss: str) -> float:
    """The loss of a model made from a bundled one."""
    outputs, labels = outputs_of(model, digits(name, SAMPLES)), digits(name, SAMPLES)["labels"]
    return float(np.mean(IN_NUMPY[loss](outputs, original(name), labels)))


def removed_at(width: int, scores: Sensitivities, group: str) -> np.ndarray:
    """The channels whose scores lie nearest to zero."""
    order = np.argsort(np.abs(scores.of(group)), kind="stable")
    return order[: len(order) - width]


def assert_curves_are_losses_of_rewritten_models(
    curves: WidthCurves, couplings: Couplings, scores: Sensitivities, name: str, loss: str
) -> None:
    """Each point is the loss after removing the least important channels, less that of the unpruned model."""
    opened = loss_in_numpy(couplings.graph.model, name, loss)
    for curve in curves.groups:
        for width, measured in list(zip(curve.widths, curve.losses, strict=True))[1:]:
            smaller = without(couplings, couplings.group(curve.name), removed_at(width, scores, curve.name))
            expected = loss_in_numpy(smaller, name, loss) - opened
            assert measured == pytest.approx(expected, **TOLERANCE), (curve.name, width)


@pytest.mark.parametrize(
    ("name", "places", "loss"),
    [
        ("mlp_keras", (0,), "cross-entropy"),
        ("mlp_sklearn", (0, 1), "kl"),
        ("gru_torch", (0,), "mse"),
        ("lstm_keras", (0,), "custom"),
        ("resnet_torchscript", (0,), "cross-entropy"),
        ("resnet_dynamo", (-2, -1), "kl"),
        ("vit_dynamo", (4,), "cross-entropy"),
        ("unet_torch", (-1,), "mse"),
    ],
)
def test_a_curve_gives_the_loss_of_the_rewritten_model_at_each_width(
    name: str, places: tuple[int, ...], loss: str
) -> None:
    """Closing all gates of the channels that go changes the loss as rewriting the model without them does."""
    couplings, scores = bundled(name), by_magnitude(name, places)
    curves = curves_of(couplings, scores, name, furthest if loss == "custom" else loss)
    assert_curves_are_losses_of_rewritten_models(curves, couplings, scores, name, loss)


@pytest.mark.parametrize("criterion", ["magnitude", "random", "sensitivity"])
def test_scores_of_any_criterion_order_the_channels(criterion: str) -> None:
    """The least important channels go first, by the absolute value of whatever scores are given."""
    name, couplings = "mlp_torch", bundled("mlp_torch")
    scores = {
        "magnitude": lambda: by_magnitude(name),
        "random": lambda: chances(couplings, couplings.groups, seed=1),
        "sensitivity": lambda: probe(couplings, digits(name, SAMPLES), "cross-entropy", delta=0.1, jobs=1),
    }[criterion]()
    curves = curves_of(couplings, scores, name, "cross-entropy")
    assert curves.criterion == criterion
    assert_curves_are_losses_of_rewritten_models(curves, couplings, scores, name, "cross-entropy")


def test_channels_whose_removal_would_lower_the_loss_matter_too() -> None:
    """A score far below zero keeps its channel as one far above does; of equal ones the first goes first."""
    couplings, data = nine_neurons(), {"x": np.eye(4, dtype=np.float32)}
    signed = scored(couplings, {"hidden": [-9, 8, -7, 6, 0, 0, 3, -2, 1]})
    ranked = scored(couplings, {"hidden": [9, 8, 7, 6, 0, 0.5, 3, 2, 1]})
    one, other = (width_curves(couplings, scores, data, means=Means(jobs=1)) for scores in (signed, ranked))
    assert one == other


def test_widths_run_from_all_channels_to_one() -> None:
    """Ten widths, widest first, each less than the one before."""
    (curve,) = curves_of(bundled("mlp_keras"), by_magnitude("mlp_keras"), "mlp_keras").groups
    assert curve.size == 128
    assert curve.widths == (128, 115, 102, 83, 64, 45, 26, 13, 6, 1)
    assert len(curve.losses) == len(curve.stderr) == len(SHARES) == 10


def test_small_groups_have_fewer_widths() -> None:
    """No width comes twice, and one channel stays."""
    (curve,) = curves_of(bundled("vit_dynamo"), by_magnitude("vit_dynamo", (3,)), "vit_dynamo").groups
    assert curve.widths == (4, 3, 2, 1)


def test_the_last_channel_stays() -> None:
    """Even when all are to go."""
    curves = curves_of(bundled("mlp_keras"), by_magnitude("mlp_keras"), "mlp_keras", shares=(0.999, 1.0))
    assert curves.groups[0].widths == (1,)


def test_the_full_width_costs_nothing() -> None:
    """Its loss change and its error are zero and are not measured; all other errors are standard errors."""
    couplings, scores, name = bundled("mlp_sklearn"), by_magnitude("mlp_sklearn"), "mlp_sklearn"
    (curve,) = curves_of(couplings, scores, name, "cross-entropy").groups
    assert (curve.losses[0], curve.stderr[0]) == (0, 0)
    narrowest = without(couplings, couplings.group(curve.name), removed_at(curve.widths[-1], scores, curve.name))
    changes = label_losses(narrowest, name) - label_losses(couplings.graph.model, name)
    assert curve.losses[-1] == pytest.approx(changes.mean(), **TOLERANCE)
    assert curve.stderr[-1] == pytest.approx(changes.std(ddof=1) / np.sqrt(SAMPLES), **TOLERANCE)


def label_losses(model: ModelProto, name: str) -> np.ndarray:
    """The cross-entropy of each sample."""
    outputs, labels = outputs_of(model, digits(name, SAMPLES)), digits(name, SAMPLES)["labels"]
    each = [({key: value[n : n + 1] for key, value in outputs.items()}, labels[n : n + 1]) for n in range(SAMPLES)]
    return np.array([IN_NUMPY["cross-entropy"](of_one, {}, label) for of_one, label in each])


def test_only_the_groups_that_are_asked_for_are_measured() -> None:
    """By default all that have scores."""
    couplings, data = three_layers(), {"x": np.ones((2, 3, 4, 4), np.float32)}
    scores = magnitudes(couplings, couplings.groups)
    every = width_curves(couplings, scores, data, means=Means(jobs=1))
    some = width_curves(couplings, scores, data, groups=[couplings.group("inner")], means=Means(jobs=1))
    assert {curve.name for curve in every.groups} == {"stem", "inner", "head"}
    assert some.groups == (every.of("inner"),)


def constant_of(couplings: Couplings, name: str) -> np.ndarray:
    """The numbers of a constant."""
    return couplings.graph.constants[name].array()


def with_constants(couplings: Couplings, constants: Mapping[str, np.ndarray]) -> Couplings:
    """The model with other numbers in some constants."""
    model = ModelProto()
    model.CopyFrom(couplings.graph.model)
    for tensor in model.graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name], tensor.name))
    return couple(read(model))


def assert_repair_gives_losses_of_rewritten_models(curve: WidthCurve, name: str, repair: Repair) -> None:
    """Each point is the loss of the rewritten model with the repaired weights of that width."""
    group, opened = bundled(name).group(curve.name), loss_in_numpy(bundled(name).graph.model, name, "kl")
    for width, measured in list(zip(curve.widths, curve.losses, strict=True))[1:]:
        removed = removed_at(width, by_magnitude(name), curve.name)
        repaired = with_constants(bundled(name), repair(group, np.setdiff1d(np.arange(group.size), removed)))
        expected = loss_in_numpy(without(repaired, repaired.group(curve.name), removed), name, "kl") - opened
        assert measured == pytest.approx(expected, **TOLERANCE), width


@pytest.mark.parametrize("name", HEADS)
def test_a_repair_that_changes_nothing_changes_no_loss(name: str) -> None:
    """The constants' own numbers, brought by the probes, give what the model's give."""
    own = {HEADS[name]: constant_of(bundled(name), HEADS[name])}
    plain = curves_of(bundled(name), by_magnitude(name), name)
    repaired = curves_of(bundled(name), by_magnitude(name), name, repair=lambda group, kept: own)
    assert repaired.groups[0].widths == plain.groups[0].widths
    np.testing.assert_allclose(repaired.groups[0].losses, plain.groups[0].losses, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("gru_torch", ["head.weight"]),
        ("lstm_torch", ["head.weight", "head.bias"]),
        ("lstm_torch", ["onnx::LSTM_110"]),
        ("mlp_torch", ["output.weight", "hidden.bias"]),
    ],
)
def test_repaired_weights_are_those_that_are_measured(name: str, constants: list[str]) -> None:
    """Weights that read the group, whole or in a loop over time, and others beside them."""

    def scaled(group: Group, kept: np.ndarray) -> dict[str, np.ndarray]:
        factor = np.float32(1 + 0.5 * len(kept) / group.size)
        return {constant: constant_of(bundled(name), constant) * factor for constant in constants}

    (curve,) = curves_of(bundled(name), by_magnitude(name), name, "kl", shares=FEW_SHARES, repair=scaled).groups
    assert_repair_gives_losses_of_rewritten_models(curve, name, scaled)


def refitted(group: Group, kept: np.ndarray) -> dict[str, np.ndarray]:
    """What the kept neurons of mlp_torch can best do for its logits, by least squares; others get large numbers."""
    x = digits("mlp_torch", 300)["x"].reshape(-1, 784)
    weight, bias, output = (
        constant_of(bundled("mlp_torch"), key) for key in ("hidden.weight", "hidden.bias", "output.weight")
    )
    hidden = np.maximum(x @ weight.T + bias, 0)
    fitted = np.full_like(output, 100)
    fitted[:, kept] = np.linalg.lstsq(hidden[:, kept], hidden @ output.T, rcond=None)[0].T
    return {"output.weight": fitted}


def test_weights_may_be_refitted_for_each_width() -> None:
    """Least squares for the layer behind: what stands at removed positions does not matter, and the loss falls far."""
    couplings, scores, name = bundled("mlp_torch"), by_magnitude("mlp_torch"), "mlp_torch"
    (plain,) = curves_of(couplings, scores, name, "kl", shares=FEW_SHARES).groups
    (repaired,) = curves_of(couplings, scores, name, "kl", shares=FEW_SHARES, repair=refitted).groups
    assert_repair_gives_losses_of_rewritten_models(repaired, name, refitted)
    assert all(10 * one < other for one, other in zip(repaired.losses[1:], plain.losses[1:], strict=True))


def test_the_journal_tells_repairs_apart(tmp_path: Path) -> None:
    """An answer is used again for the same channels and weights, and never for others."""
    one, other = (scored(nine_neurons(), {"hidden": values}) for values in (range(9), range(9, 0, -1)))
    for scores, factor in ((one, None), (other, None), (one, 1.0), (one, 2.0)):
        before, first = reused_and_found(tmp_path, scores, factor)
        after, again = reused_and_found(tmp_path, scores, factor)
        assert (before, after) == (0, len(first.groups[0].widths) - 1)
        assert again == first


def reused_and_found(cache: Path, scores: Sensitivities, factor: float | None) -> tuple[int, WidthCurves]:
    """How many answers the journal gave, and the curve; the weights behind are multiplied by the factor, if any."""
    couplings, told = nine_neurons(), []
    found = width_curves(
        couplings,
        scores,
        {"x": np.eye(4, dtype=np.float32)},
        repair=None
        if factor is None
        else lambda group, kept: {"w2": constant_of(couplings, "w2") * np.float32(factor)},
        means=Means(jobs=1),
        cache=cache,
        progress=lambda *news: told.append(news),
    )
    return told[0][1], found


def test_curves_survive_json() -> None:
    """Written as text and read again they are the same, to the last bit."""
    curves = curves_of(bundled("mlp_sklearn"), by_magnitude("mlp_sklearn"), "mlp_sklearn")
    assert TypeAdapter(WidthCurves).validate_json(curves.to_json()) == curves


def test_losses_that_are_no_numbers_are_very_large() -> None:
    """A width at which the outputs overflow is the worst of all, and JSON can say so."""
    couplings, data = nine_neurons(), {"x": np.eye(4, dtype=np.float32)}
    broken = {"w2": np.full_like(constant_of(couplings, "w2"), 3e38)}
    (curve,) = width_curves(
        couplings,
        magnitudes(couplings, couplings.groups),
        data,
        "mse",
        repair=lambda group, kept: broken,
        means=Means(jobs=1),
    ).groups
    assert all(1e30 < loss < np.inf for loss in curve.losses[1:])


@pytest.mark.parametrize("shares", [[], [-0.5], [float("nan")], [2.0]])
def test_shares_that_are_none_are_refused(shares: list[float]) -> None:
    """At least one, each from 0 to 1."""
    couplings = bundled("mlp_torch")
    with pytest.raises(UsageError, match=r"shares of channels that go, each from 0 to 1, found \["):
        width_curves(couplings, magnitudes(couplings, couplings.groups), digits("mlp_torch", 4), shares=shares)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"none": np.zeros(3)}, "names of the model's constants, found 'none'"),
        ({"output.weight": np.zeros((10, 128))}, r"an array float32 \[10, 128\], found float64 \[10, 128\]"),
        ({"output.weight": [1.0]}, "found list"),
        ({"output.bias": np.full(10, np.nan, np.float32)}, "finite numbers for 'output.bias'"),
        (None, "arrays by name, found NoneType"),
    ],
)
def test_a_repair_gives_constants_of_the_model(given: Any, message: str) -> None:
    """Names, shapes, dtypes and numbers are looked at before anything runs; the group is named."""
    couplings = bundled("mlp_torch")
    scores = magnitudes(couplings, couplings.groups)
    with pytest.raises(UsageError, match=message):
        width_curves(couplings, scores, digits("mlp_torch", 4), repair=lambda group, kept: given)
