"""Which operators have a rule, and what holds for the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onnxprune.reading.graph import Node
from onnxprune.rules.axes import Dim
from onnxprune.rules.operation import Op, Tensor
from onnxprune.rules.registry import facts_of, frozen_operators, known_operators, said_of
from onnxprune.rules.table import standard_operators
from tests.models import build
from tests.oracle import assert_removal_equals_zeroing, reasons

UNKNOWN = {
    "com.microsoft.IsAllFinite": "b0 = com.microsoft.IsAllFinite(a)\n b1 = Cast<to=1>(b0)\n b = Mul(a, b1)",
}


@pytest.mark.parametrize("operator", standard_operators(), ids=lambda operator: ".".join(operator))
def test_every_operator_of_the_standard_has_a_word_said_on_it(operator: tuple[str, str]) -> None:
    """It has a rule, or a reason of its own to keep all positions."""
    assert said_of(*operator)


@pytest.mark.parametrize("operator", frozen_operators(), ids=lambda operator: ".".join(operator))
def test_operators_that_keep_all_positions_say_why(operator: tuple[str, str]) -> None:
    """Every axis freezes, for the reason that the table gives."""
    domain, op_type = operator
    node = Node("n", 0, domain, op_type, ("a",), ("b",), {}, ())
    op = Op(node, (Tensor("a", (Dim(2), Dim(3))),), (Tensor("b", (Dim(3),)),), 18)
    facts = facts_of(op)
    assert {fact.axis for fact in facts} == {*op.input(0).axes, *op.output().axes}
    assert {fact.reason for fact in facts} == {f"{node.label} {frozen_operators()[operator]}"}


@pytest.mark.parametrize("operator", known_operators(), ids=lambda operator: operator[1])
def test_every_operator_with_a_rule_is_tested(operator: tuple[str, str]) -> None:
    """Each name stands in the text of some model in this folder."""
    _, op_type = operator
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    assert any(re.search(rf"\b{op_type}[(<\"]", text) for text in texts)


@pytest.mark.parametrize("label", UNKNOWN)
def test_an_unknown_operator_freezes_what_it_touches(label: str) -> None:
    """Nothing that an operator without a rule reads or writes is pruned, for a reason that names it; the rest is."""
    model = build(
        f"""
        before = Conv(x[1,3,4,4], w0[6,3,1,1])
        a = Conv(before, w1[8,6,1,1])
        {UNKNOWN[label]}
        c = Relu(b)
        d = Conv(c, w2[4,8,1,1])
        y = Conv(d, w3[2,4,1,1])
    """.replace("[1,8,1,1]{0", "[1,8,1,1]{0")
    )
    couplings = assert_removal_equals_zeroing(model, groups={"before": 6, "d": 4})
    assert f"no rule for operator {label}" in reasons(couplings)


def test_a_form_that_a_rule_does_not_expect_freezes() -> None:
    """A node whose tensors do not fit its operator is kept as it is, and the reason says so."""
    node = Node("n", 0, "", "Transpose", ("a",), ("b",), {"perm": [0, 1, 7]}, ())
    op = Op(node, (Tensor("a", (Dim(2), Dim(3))),), (Tensor("b", (Dim(3), Dim(2))),), 18)
    facts = facts_of(op)
    assert {fact.axis for fact in facts} == {*op.input(0).axes, *op.output().axes}
    assert facts[0].reason.startswith("Transpose has a form that its rule does not expect")


def test_a_body_that_does_not_run_freezes_what_it_touches() -> None:
    """What a branch reads or returns is kept where the branch cannot run by itself; what lies elsewhere is pruned."""
    model = build("""
        before = Conv(x[1,3,4,4], w0[6,3,1,1])
        a = Conv(before, w1[8,6,1,1])
        flag = Cast<to=9>(one[]{1})
        b = If<then_branch = one () => (float[1,8,4,4] p) { p = Relu(a) },
               else_branch = two () => (float[1,8,4,4] q) { q = Reshape(a, s0{1,7,4,4}) }>(flag)
        d = Conv(b, w2[4,8,1,1])
        y = Conv(d, w3[2,4,1,1])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={"before": 6, "d": 4})
    assert any("stands in a body that does not run" in reason for reason in reasons(couplings))


def test_a_sequence_of_tensors_freezes_what_it_holds() -> None:
    """An operator that works on more than tensors is not analysed."""
    model = build("""
        before = Conv(x[1,3,4,4], w0[6,3,1,1])
        a = Conv(before, w1[8,6,1,1])
        both = SequenceConstruct(a, a)
        b = ConcatFromSequence<axis=1>(both)
        d = Conv(b, w2[4,16,1,1])
        y = Conv(d, w3[2,4,1,1])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={"before": 6, "d": 4})
    assert "SequenceConstruct works on more than tensors" in reasons(couplings)


def test_both_spellings_of_the_standard_domain_are_one() -> None:
    """`ai.onnx` is the same as no domain at all."""
    model = build("a = Conv(x[1,3,4,4], w1[8,3,1,1])\n y = Conv(a, w2[4,8,1,1])")
    for node in model.graph.node:
        node.domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    assert_removal_equals_zeroing(model, groups={"a": 8})
