"""The registry: which function speaks for which operator, and what holds for an operator nobody speaks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from onnxprune.rules.axes import Dim
from onnxprune.rules.facts import Fact, Frozen
from onnxprune.rules.operation import NotUnderstood, Op

Rule = Callable[[Op], Iterable[Fact]]

_RULES: dict[tuple[str, str], Rule] = {}
_REASONS: dict[tuple[str, str], str] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            assert (domain, op_type) not in _RULES | _REASONS, f"two words on {op_type}"
            _RULES[domain, op_type] = function
        return function

    return register


def keeps_all(*op_types: str, because: str, domain: str = "") -> None:
    """Register these operators as such that keep all positions; `because` goes on after the operator's name."""
    for op_type in op_types:
        assert (domain, op_type) not in _RULES | _REASONS, f"two words on {op_type}"
        _REASONS[domain, op_type] = because


def frozen_operators() -> dict[tuple[str, str], str]:
    """Every (domain, op_type) that keeps all positions, and why."""
    return dict(sorted(_REASONS.items()))


def said_of(domain: str, op_type: str) -> str:
    """The first line of an operator's rule, or why it keeps all positions; empty where nobody speaks for it."""
    speak = _RULES.get((domain, op_type))
    if speak is None:
        return _REASONS.get((domain, op_type), "")
    return next(line.strip() for line in (speak.__doc__ or "").splitlines() if line.strip()).rstrip(":")


def known_operators() -> tuple[tuple[str, str], ...]:
    """Every (domain, op_type) that has a rule, sorted."""
    return tuple(sorted(_RULES))


def facts_of(op: Op) -> tuple[Fact, ...]:
    """All that is known about the node; an operator or form without a rule freezes every axis it touches."""
    speak = _RULES.get((op.node.domain, op.node.op_type))
    if speak is None:
        return tuple(refuse(op, why_frozen(op)))
    try:
        return tuple(speak(op))
    except NotUnderstood as why:
        return tuple(refuse(op, f"{op.node.label}: {why}"))
    except (ValueError, IndexError, TypeError) as why:  # a rule takes its node apart and finds other pieces
        return tuple(refuse(op, f"{op.node.label} has a form that its rule does not expect: {why}"))


def why_frozen(op: Op) -> str:
    """What keeps all positions of an operator without a rule."""
    because = _REASONS.get((op.node.domain, op.node.op_type))
    return f"{op.node.label} {because}" if because else f"no rule for operator {op.node.label}"


def refuse(op: Op, reason: str) -> Iterator[Fact]:
    """Freeze every axis the node touches."""
    axes: list[Dim] = [axis for tensor in (*op.tensors, *op.results) for axis in tensor.axes]
    for axis in axes:
        yield Frozen(axis, reason)
