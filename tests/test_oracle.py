"""The oracle itself: it must be able to fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

from onnxprune.coupling.constants import Variant
from onnxprune.rules import registry
from onnxprune.rules.facts import Normalized
from tests.models import build
from tests.oracle import assert_inexact, assert_removal_equals_zeroing

MODEL = """
    a = Conv(x[N,3,4,4], w1[8,3,1,1], b1[8])
    b = BatchNormalization(a, scale[8], shift[8], mean[8], v1[8])
    y = Conv(b, w2[4,8,1,1])
"""


@pytest.mark.parametrize("name", ["w1", "b1", "scale", "shift", "mean", "v1", "w2"])
def test_a_slice_at_wrong_positions_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a single slice taken one position further on, the outputs would differ."""

    def wrong(array: np.ndarray, variant: Variant) -> np.ndarray:
        for axis, positions in variant.kept.items():
            array = np.take(array, positions + (variant.constant == name), axis, mode="wrap")
        return array

    monkeypatch.setattr("onnxprune.rewriting.rewrite.sliced", wrong)
    with pytest.raises(AssertionError, match="outputs differ"):
        assert_removal_equals_zeroing(build(MODEL), groups={"a": 8})


def test_a_rule_that_calls_a_mean_exact_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a rule silent about what makes it inexact, the outputs would differ."""
    honest = registry._RULES["", "LayerNormalization"]
    silent = lambda op: [fact for fact in honest(op) if not isinstance(fact, Normalized)]  # noqa: E731
    monkeypatch.setitem(registry._RULES, ("", "LayerNormalization"), silent)
    model = build("a = MatMul(x[N,5], w1[5,8])\n b = LayerNormalization(a, scale[8])\n y = MatMul(b, w2[8,3])")
    with pytest.raises(AssertionError, match="outputs differ"):
        assert_removal_equals_zeroing(model, groups={"a": 8})


def test_groups_that_were_not_expected_are_found() -> None:
    """Neither a group too many nor one of another size passes."""
    for groups in ({}, {"a": 7}, {"b": 8}, [8, 8]):
        with pytest.raises(AssertionError):
            assert_removal_equals_zeroing(build(MODEL), groups=groups)


def test_a_model_whose_outputs_do_not_depend_on_the_channels_proves_nothing() -> None:
    """Where zeroing changes nothing, the comparison is no proof and does not pass for one."""
    model = build("a = MatMul(x[N,5], w1[5,8])\n b = Sub(a, a)\n y = MatMul(b, w2[8,3])")
    with pytest.raises(AssertionError, match="zeroing changed nothing"):
        assert_removal_equals_zeroing(model, groups={"a": 8})


def test_an_exact_group_does_not_pass_for_inexact() -> None:
    """A refusal that is not needed is found as well."""
    with pytest.raises(AssertionError):
        assert_inexact(build(MODEL), {"a": 8})


def drop_batch_name(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def rename_output(model: ModelProto) -> None:
    model.graph.node[-1].output[0] = model.graph.output[0].name = "z"


@pytest.mark.parametrize("spoil", [drop_batch_name, rename_output])
def test_another_interface_is_found(spoil: Callable[[ModelProto], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name or a dynamic dimension that is lost does not pass."""
    from tests import oracle

    honest = oracle.rewrite_kept

    def spoilt(*arguments: object) -> ModelProto:
        model = honest(*arguments)
        spoil(model)
        return model

    monkeypatch.setattr(oracle, "rewrite_kept", spoilt)
    with pytest.raises(AssertionError):
        assert_removal_equals_zeroing(build(MODEL), groups={"a": 8})
