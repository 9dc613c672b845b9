"""Amounts, targets and limits as users write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from onnxprune.choosing.eligible import groups_to_prune
from onnxprune.choosing.targets import Amount, Limits, Targets, amount
from onnxprune.coupling.couple import couple
from onnxprune.errors import ModelError, UsageError
from onnxprune.reading.read import read
from tests.choosing.graphs import three_layers
from tests.models import build


@pytest.mark.parametrize(
    ("written", "of_a_thousand"),
    [
        ("50%", 500),
        ("12.5%", 125),
        (".5%", 5),
        ("100%", 1000),
        (0.5, 500),
        ("0.5", 500),
        (1, 1000),
        (1.0, 1000),
        ("1", 1000),
        (2, 2),
        ("2", 2),
        ("200", 200),
        (3e6, 3e6),
        ("200K", 200e3),
        ("200k", 200e3),
        ("5M", 5e6),
        ("5MB", 5e6),
        (" 5 mb ", 5e6),
        ("1.5G", 1.5e9),
        ("0.5M", 0.5e6),
        ("800B", 800),
    ],
)
def test_amounts_are_shares_or_absolute(written: float | str, of_a_thousand: float) -> None:
    """A per cent or a number up to 1 is a share; a larger number, or one with a unit, is absolute."""
    assert amount(written, "macs").of(1000) == pytest.approx(of_a_thousand)


WORDS = ["", "x", "%", "0", "0%", "-5", "-50%", "101%", "50%B", "5T", "5 M B", "1e6", "1,000", "nan", "half"]
NONSENSE = [*WORDS, 0, -1, 0.0, math.nan, math.inf]


@pytest.mark.parametrize("written", NONSENSE)
@pytest.mark.parametrize("name", ["macs", "params", "size"])
def test_amounts_that_mean_nothing_are_refused(written: float | str, name: str) -> None:
    """The message says what an amount looks like, and what was found."""
    with pytest.raises(
        UsageError, match=f"^Expected for {name} a share up to 100% .* or an amount .*found "
    ) as refusal:
        Targets(**{name: written})
    assert repr(written) in str(refusal.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"ratio": 1}, "Expected a ratio of at least 0 and below 1, found 1"),
        ({"ratio": 1.5}, "Expected a ratio of at least 0 and below 1, found 1.5"),
        ({"ratio": -0.1}, "Expected a ratio of at least 0 and below 1, found -0.1"),
        ({"ratio": math.nan}, "Expected a ratio of at least 0 and below 1, found nan"),
        ({"threshold": "mode"}, "Expected a threshold of median, mean or a number, found 'mode'"),
        ({"threshold": "nan"}, "Expected a threshold of median, mean or a number, found 'nan'"),
        ({"threshold": math.inf}, "Expected a threshold of median, mean or a number, found inf"),
    ],
)
def test_targets_that_mean_nothing_are_refused(target: dict[str, Any], message: str) -> None:
    """A ratio lies in [0, 1), a threshold is finite or one of two words."""
    with pytest.raises(UsageError) as refusal:
        Targets(**target)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize("limit", ["min_channels", "multiple_of"])
def test_limits_of_nothing_are_refused(limit: str) -> None:
    """Widths are at least 1, and multiples of at least 1."""
    with pytest.raises(UsageError, match=f"Expected {limit.replace('_', '-')} of 1 or more, found 0"):
        Limits(**{limit: 0})


def test_amounts_stay_as_they_are() -> None:
    """An Amount is its own reading."""
    assert amount(Amount(7, is_share=False), "size") == Amount(7, is_share=False)


def names(**limits: tuple[str, ...]) -> set[str]:
    return {group.name for group in groups_to_prune(three_layers(), Limits(**limits))}


@pytest.mark.parametrize(
    ("limits", "left"),
    [
        ({}, {"stem", "inner", "head"}),
        ({"only": ("stem",)}, {"stem"}),
        ({"only": ("*e*",)}, {"stem", "inner", "head"}),
        ({"only": ("outer",)}, {"stem", "inner"}),
        ({"only": ("stem_b",)}, {"stem"}),
        ({"only": ("out_[vw]",)}, {"head"}),
        ({"only": ("inner_w", "head_w"), "skip": ("stem_b",)}, {"inner", "head"}),
        ({"only": ("head", "stem"), "skip": ("stem",)}, {"head"}),
        ({"skip": ("head",)}, {"inner"}),
        ({"skip": ("h*", "i*")}, set()),
    ],
)
def test_globs_choose_groups_by_name_layer_or_weight(limits: dict[str, tuple[str, ...]], left: set[str]) -> None:
    """
    A glob names groups, layers or weights. `only` takes a group's name for the group alone, though other groups have a
    layer of that name; `skip` leaves a layer alone altogether: its outputs and its inputs.
    """
    if left:
        assert names(**limits) == left
        return
    with pytest.raises(ModelError, match="--only and --skip leave none of 'stem', 'inner', 'head'"):
        names(**limits)


@pytest.mark.parametrize("option", ["only", "skip"])
def test_a_glob_that_matches_nothing_is_refused(option: str) -> None:
    """The message names the option, the glob and some groups."""
    with pytest.raises(UsageError) as refusal:
        names(**{option: ("stem", "layer9.*")})
    assert str(refusal.value) == (
        f"--{option} 'layer9.*' matches no group and no layer; there are groups 'stem', 'inner', 'head'. "
        "See `onnxprune inspect`."
    )


def test_a_model_without_groups_is_refused_with_the_reasons() -> None:
    """The message says of each weight why it stays."""
    couplings = couple(read(build("a = Gemm(x[N,4], w1[4,8])\n y = Softmax(a)")))
    with pytest.raises(ModelError) as refusal:
        groups_to_prune(couplings, Limits())
    assert str(refusal.value) == (
        "Expected a group of channels to prune, found none:\n"
        "  - 'w1': it is an axis of the model's input 'x'\n"
        "  - 'w1': Softmax shares one out over it\n"
        "See `onnxprune inspect`."
    )


def test_a_model_without_weights_is_refused_with_the_reason() -> None:
    """Nothing to prune, and nothing to say of any weight."""
    with pytest.raises(ModelError, match="no operator that multiplies by weights was found"):
        groups_to_prune(couple(read(build("y = Relu(x[N,4])"))), Limits())
