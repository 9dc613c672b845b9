"""The table of operators in docs/operators.md, generated from the registry and the standard's own list of operators."""

from __future__ import annotations

import onnx

from onnxprune.rules.registry import frozen_operators, known_operators, said_of

HEAD = """# Operators

Every operator of the ONNX standard as onnx {version} knows it, and those of ONNX Runtime that something is said of.
An operator has a rule, or it freezes all axes that it touches for the reason given. Any other operator freezes them
too, and `onnxprune inspect` names it.

This page is generated: `python -m onnxprune.rules > docs/operators.md`.
"""
INTRODUCTION = {
    "": "The standard: ai.onnx",
    "com.microsoft": "ONNX Runtime: com.microsoft",
    "com.microsoft.nchwc": "ONNX Runtime, blocked for one machine: com.microsoft.nchwc",
}


def standard_operators() -> dict[tuple[str, str], tuple[int, ...]]:
    """Every operator of the ONNX standard, and the opsets that (re)defined it."""
    found: dict[tuple[str, str], set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        found.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
    return {operator: tuple(sorted(versions)) for operator, versions in sorted(found.items())}


def rule_table() -> str:
    """The page: for each domain a table of its operators and what is said of them, in the rules' own words."""
    standard = standard_operators()
    operators = sorted({*standard, *known_operators(), *frozen_operators()})
    lines = [HEAD.format(version=onnx.__version__)]
    for domain in dict.fromkeys(domain for domain, _ in operators):
        rows = [row(operator, standard.get(operator, ())) for operator in operators if operator[0] == domain]
        lines += [
            f"## {INTRODUCTION.get(domain, domain)}",
            "",
            "| operator | opsets | its rule |",
            "| --- | --- | --- |",
        ]
        lines += [*rows, ""]
    return "\n".join(lines)


def row(operator: tuple[str, str], versions: tuple[int, ...]) -> str:
    said = said_of(*operator).replace("|", "/") or "no rule"
    if operator in frozen_operators():
        said = f"frozen: it {said}"
    return f"| `{operator[1]}` | {', '.join(map(str, versions)) or '1'} | {said} |"
