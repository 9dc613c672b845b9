"""
Small steps: central differences are the textbook's derivatives.

`fixtures/gradients.npz` holds those of every exact group of every classifier, by automatic differentiation in float64.
Two things keep the differences from them. Rounding: the models compute in float32, and a step δ divides what they
round off by δ, or by δ² in second differences. And steps: over a wide one the loss is no parabola, and a ReLU may open
or shut on the way, a kink that derivatives know nothing of.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from onnxprune.coupling.couple import Group
from onnxprune.errors import UsageError
from onnxprune.probing.probe import probe
from onnxprune.probing.sensitivities import Sensitivities
from tests.bundled import CLASSIFIERS, FIXTURES, bundled, digits
from tests.probing.engines import exact

SAMPLES = 16

KINKED = ("mlp_sklearn", "resnet_dynamo", "resnet_torchscript")
"""Models in which a gate moves what a later ReLU reads."""

SMOOTH = tuple(name for name in CLASSIFIERS if name not in KINKED)


@cache
def stored() -> dict[str, np.ndarray]:
    """Every stored derivative, by model, group and kind."""
    with np.load(FIXTURES / "gradients.npz") as archive:
        return {key: archive[key].astype(np.float64) for key in archive.files}


def differences(
    name: str, *, order: int = 1, delta: float | None = None, groups: list[Group] | None = None
) -> Sensitivities:
    """The scores over such a step, on the samples of the stored derivatives."""
    couplings, arrays = bundled(name), digits(name, SAMPLES)
    return probe(couplings, arrays, "cross-entropy", groups=groups, samples=SAMPLES, delta=delta, order=order, jobs=1)


def expected_of(name: str, group: str, kind: str) -> np.ndarray:
    """What the scores should be; those of first order are minus the derivative."""
    values = stored()[f"{name}|{group}|{kind}"]
    return -values if kind == "first" else values


def errors(found: Sensitivities, name: str, kind: str) -> dict[str, float]:
    """For each group, how far the scores are from what they should be, relative to that: both as L2 norms."""
    each = {entry.name: (np.array(entry.scores), expected_of(name, entry.name, kind)) for entry in found.groups}
    return {
        group: float(np.linalg.norm(scores - expected) / np.linalg.norm(expected))
        for group, (scores, expected) in each.items()
    }


def test_there_are_derivatives_for_every_group() -> None:
    """Of every classifier in `fixtures`, the first and the second."""
    groups = {f"{name}|{group.name}" for name in CLASSIFIERS for group in exact(bundled(name))}
    for kind in ("first", "second"):
        assert {key.removesuffix(f"|{kind}") for key in stored() if key.endswith(f"|{kind}")} == groups


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_central_differences_give_the_derivative(name: str) -> None:
    """
    Over δ = 0.004 the scores of every group are minus dL/dg to 1 %, and each to 1 % of the group's largest.

    Three groups lie apart by 1.5 to 1.9 % over δ = 0.001, where rounding prevails: derivatives below 0.01. Over
    wider steps it is the kinks of the residual networks: 0.9 % over 0.01. Of a single derivative that is much smaller
    than the largest either can be a large part.
    """
    found = differences(name, delta=0.004)
    assert max(errors(found, name, "first").values()) <= 0.01
    for entry in found.groups:
        expected = expected_of(name, entry.name, "first")
        np.testing.assert_allclose(entry.scores, expected, rtol=0, atol=0.01 * np.abs(expected).max())


@pytest.mark.parametrize("name", SMOOTH)
def test_second_differences_give_the_second_derivative(name: str) -> None:
    """Over δ = 0.1 the scores of every group without kinks are d²L/dg² to 2 %."""
    assert max(errors(differences(name, order=2, delta=0.1), name, "second").values()) <= 0.02


@pytest.mark.parametrize("name", ["gru_torch", "lstm_keras", "lstm_torch", "mlp_keras", "mlp_torch"])
def test_the_usual_step_gives_the_second_derivative(name: str) -> None:
    """So they are if no δ is given."""
    assert max(errors(differences(name, order=2), name, "second").values()) <= 0.02


@pytest.mark.parametrize("name", ["gru_torch", "lstm_keras", "lstm_torch", "vit_dynamo", "vit_torchscript"])
def test_half_the_step_leaves_a_quarter_of_the_error(name: str) -> None:
    """Second differences converge to the second derivative, as fast as central differences do."""
    some = exact(bundled(name))[:2]
    widest, wide, narrow = (
        errors(differences(name, order=2, delta=delta, groups=some), name, "second") for delta in (0.4, 0.2, 0.1)
    )
    for group in widest:
        assert wide[group] < widest[group] / 3
        assert narrow[group] < wide[group] / 3


@pytest.mark.parametrize("name", KINKED)
def test_second_differences_hold_the_kinks_that_derivatives_miss(name: str) -> None:
    """
    Over δ = 0.1 the scores are second differences to 1 %, by the same steps in float64.

    These lie up to 30 % from d²L/dg², over smaller steps no less: where the slope jumps, at a kink, the loss is curved
    as no derivative tells.
    """
    found = differences(name, order=2, delta=0.1)
    assert max(errors(found, name, "difference").values()) <= 0.01
    assert max(errors(found, name, "second").values()) <= 0.33


@pytest.mark.parametrize("loss", ["distance", "kl", "mse"])
def test_the_derivative_of_a_distance_is_refused(loss: str) -> None:
    """A distance is least at the model itself: its derivative is zero there, and the message says what to do."""
    with pytest.raises(UsageError, match=r"is zero at the model itself\. Give labels and --loss cross-entropy"):
        probe(bundled("mlp_torch"), digits("mlp_torch", 4), loss, delta=0.01)


@pytest.mark.parametrize("delta", [0, -0.5, 1.5, float("nan")])
def test_a_step_that_is_none_is_refused(delta: float) -> None:
    """Delta lies above 0 and up to 1."""
    with pytest.raises(UsageError, match=f"Expected a delta above 0 and up to 1, found {delta}"):
        probe(bundled("mlp_torch"), digits("mlp_torch", 4), delta=delta)
