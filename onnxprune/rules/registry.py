"""The registry: which function speaks for which operator, and what holds for an operator nobody speaks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from onnxprune.rules.axes import Dim
from onnxprune.rules.facts import Fact, Frozen
from onnxprune.rules.operation import NotUnderstood, Op

Rule = Callable[[Op], Iterable[Fact]]

_RULES: dict[tuple[str, str], Rule] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            assert (domain, op_type) not in _RULES, f"two rules for {op_type}"
            _RULES[domain, op_type] = function
        return function

    return register


def known_operators() -> tuple[tuple[str, str], ...]:
    """Every (domain, op_type) that has a rule, sorted."""
    return tuple(sorted(_RULES))


def rule_table() -> str:
    """A Markdown table of every operator with a rule and what the rule says, in the rules' own words."""
    rows = []
    for domain, op_type in known_operators():
        said = next(line.strip() for line in (_RULES[domain, op_type].__doc__ or "").splitlines() if line.strip())
        rows.append(f"| `{domain + '.' if domain else ''}{op_type}` | {said.rstrip(':').replace('|', '/')} |")
    head = (
        "# Operators with rules\n\nAny other operator freezes the axes it touches, and `onnxprune inspect` names it.\n"
    )
    return "\n".join([head, "| operator | its rule |", "| --- | --- |", *rows, ""])


def facts_of(op: Op) -> tuple[Fact, ...]:
    """All that is known about the node; an operator or form without a rule freezes every axis it touches."""
    speak = _RULES.get((op.node.domain, op.node.op_type))
    if speak is None:
        return tuple(refuse(op, f"no rule for operator {op.node.label}"))
    try:
        return tuple(speak(op))
    except NotUnderstood as why:
        return tuple(refuse(op, f"{op.node.label}: {why}"))
    except (ValueError, IndexError, TypeError) as why:  # a rule takes its node apart and finds other pieces
        return tuple(refuse(op, f"{op.node.label} has a form that its rule does not expect: {why}"))


def refuse(op: Op, reason: str) -> Iterator[Fact]:
    """Freeze every axis the node touches."""
    axes: list[Dim] = [axis for tensor in (*op.tensors, *op.results) for axis in tensor.axes]
    for axis in axes:
        yield Frozen(axis, reason)
