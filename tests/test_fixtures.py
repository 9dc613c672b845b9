"""The trained models of the repository, against the oracle."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.oracle import assert_removal_equals_zeroing, coupled, parameters

FIXTURES = Path(__file__).parent.parent / "fixtures"

SIZES = {
    "bench/mlp": [128],
    "bench/resnet20": [16] * 4 + [32] * 4 + [64] * 4,
    "bench/vgg": [16, 16, 32, 32, 64, 64, 128],
    "bench/vit": [4, 16, 128] * 4,
    "gru_torch": [32],
    "lstm_keras": [64],
    "lstm_torch": [64],
    "mlp_keras": [128],
    "mlp_sklearn": [64, 32],
    "mlp_torch": [128],
    "resnet_dynamo": [16, 16, 32, 32, 32, 96, 48, 48, 16],
    "resnet_torchscript": [16, 16, 32, 32, 32, 96, 48, 48, 16],
    "unet_torch": [8, 8, 16, 16, 32, 32, 16, 16, 16, 8, 8, 8],
    "vit_dynamo": [4, 16, 128] * 3,
    "vit_torchscript": [4, 16, 128] * 3,
}
INEXACT = {"bench/vit": [64], "vit_dynamo": [64], "vit_torchscript": [64]}


@pytest.mark.parametrize("name", SIZES)
def test_real_models_are_pruned_exactly(name: str) -> None:
    """Each exporter's model has the groups that its architecture has, and any channels of them can go."""
    model = onnx.load(FIXTURES / f"{name}.onnx")
    assert_removal_equals_zeroing(model, groups=SIZES[name], inexact=INEXACT.get(name, ()))


@pytest.mark.parametrize("name", SIZES)
def test_nearly_all_parameters_can_go(name: str) -> None:
    """With every group at one channel, little is left."""
    model = onnx.load(FIXTURES / f"{name}.onnx")
    couplings = coupled(model)
    widths = {dim: 1 for group in couplings.groups for dim in group.dims}
    assert couplings.costs.params.at(widths) < 0.1 * parameters(model)


def test_every_fixture_is_tested() -> None:
    """No model lies there without being pruned here."""
    stored = (path.relative_to(FIXTURES).with_suffix("") for path in FIXTURES.rglob("*.onnx"))
    assert {path.as_posix() for path in stored} == SIZES.keys()
