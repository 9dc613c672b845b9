"""What a group says about itself."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.coupling.couple import Slice
from tests.models import build
from tests.oracle import coupled

TEXT = """
    a = Conv(x[N,3,4,4], w1[8,3,1,1], b1[8])
    b = BatchNormalization(a, scale[8], shift[8], mean[8], v1[8])
    c = Conv(b, w2[4,8,1,1])
    y = Conv(c, w3[2,4,1,1])
"""


def test_a_group_lists_every_slice() -> None:
    """All axes of all constants that lose positions together, in graph order."""
    first, second = coupled(build(TEXT)).groups
    assert first.slices == (
        *(Slice("w1", 0), Slice("b1", 0), Slice("scale", 0), Slice("shift", 0), Slice("mean", 0), Slice("v1", 0)),
        Slice("w2", 1),
    )
    assert second.slices == (Slice("w2", 0), Slice("w3", 1))


def test_a_group_lists_the_layers_that_it_slices() -> None:
    """Those that read one of its constants, and it is named after the one that makes the channels."""
    first, second = coupled(build(TEXT)).groups
    assert (first.name, first.layers) == ("a", ("a", "b", "c"))
    assert (second.name, second.layers) == ("c", ("c", "y"))


@pytest.mark.parametrize("way", ["Identity(w1[8,5])", "Cast<to=1>(double w1[8,5])", "Concat<axis=0>(wa[4,5], wb[4,5])"])
def test_a_group_is_named_after_the_layer_not_after_what_prepares_its_weight(way: str) -> None:
    """Whatever is computed from weights alone is no layer."""
    couplings = coupled(build(f"w = {way}\n a = Gemm<transB=1>(x[N,5], w)\n y = MatMul(a, w2[8,2])"))
    assert {group.name.partition(":")[0] for group in couplings.groups} == {"a"}


def test_groups_of_one_layer_are_numbered() -> None:
    """Where a layer makes the channels of several groups, its name is not enough."""
    couplings = coupled(build("a = Conv<group=2>(x[N,4,4,4], w1[8,2,1,1])\n y = ReduceL2(a)"))
    assert [group.name for group in couplings.groups] == ["a"]
    couplings = coupled(build("a = MatMul(x[1,4,5], w1[6,5,8])\n y = ReduceL2(a)"))
    assert [group.name for group in couplings.groups] == ["a:1", "a:2"]


def test_channels_of_a_group_are_positions_of_its_dims() -> None:
    """A group of one Dim counts as that Dim does."""
    group = coupled(build(TEXT)).group("a")
    (kept,) = group.per_dim(np.array([1, 5])).values()
    assert kept.tolist() == [1, 5]


def test_a_refusal_names_the_slices_that_stay() -> None:
    """What is frozen, and what asks for it."""
    refusals = coupled(build(TEXT)).refusals
    assert [(refusal.size, refusal.slices, refusal.reason.text) for refusal in refusals] == [
        (3, (Slice("w1", 1),), "it is an axis of the model's input 'x'"),
        (2, (Slice("w3", 0),), "it is an axis of the model's output 'y'"),
    ]


def test_an_inexact_group_names_the_node() -> None:
    """The reason says which operator, and the node is known."""
    couplings = coupled(build("a = MatMul(x[N,5], w1[5,8])\n m = ReduceMean(a, axes{1})\n y = Neg(m)"))
    (group,) = couplings.groups
    assert not group.exact
    assert (group.inexact.text, group.inexact.node) == ("ReduceMean takes a mean over it", "m")


def test_groups_come_in_the_order_of_the_graph() -> None:
    """From input to output."""
    text = "\n".join(f"t{n + 1} = MatMul({f't{n}' if n else 'x[N,4]'}, w{n}[4,4])" for n in range(9))
    couplings = coupled(build(f"{text}\n y = MatMul(t9, w9[4,2])"))
    assert [group.name for group in couplings.groups] == [f"t{number}" for number in range(1, 10)]
