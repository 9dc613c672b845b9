"""The folders are the pipeline, and operators are known to the rules alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
FIRST_STAGES = (
    "errors",
    "files",
    "reading",
    "rules",
    "coupling",
    "probing",
    "choosing",
    "rewriting",
    "timing",
    "repairing",
)
LATER_STAGES = ("ordering", "verifying", "judging", "sparsifying", "quantizing", "reporting")
WHOLE_RUNS = (
    "clock",
    "planning",
    "pruner",
    "finishing",
    "options",
    "job",
    "beginning",
    "pipeline",
    "comparing",
    "cli",
    "__main__",
)
STAGES = (*FIRST_STAGES, *LATER_STAGES, *WHOLE_RUNS)

BUILDERS = {
    "reading/bodies.py": "tells how tensors pass through bodies, by which their insides are run",
    "coupling/masking.py": "puts masks at sums and means",
    "reading/graph.py": "Constant nodes hold weights",
    "reading/observing.py": "adds nodes that measure",
    "probing/engine/splitting.py": "puts gates in front of sinks",
    "probing/loss_graph.py": "builds the loss into the graph",
    "rewriting/editing.py": "adds Constant nodes to models of old IR versions",
    "rewriting/mending.py": "adds the factors that mend a size",
    "rewriting/selections.py": "selects by number what was selected by steps",
    "rewriting/shape_graph.py": "passes measured sizes through to its outputs",
}
"""The files that build graphs, or run parts of them, and must therefore name operators, and why."""


def stage_of(module: str) -> str | None:
    """The stage that a module of the package belongs to."""
    parts = module.split(".")
    return parts[1] if parts[0] == "onnxprune" and len(parts) > 1 else None


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != ROOT or path.stem != "__init__"], ids=label)
def test_a_stage_imports_only_stages_before_it(path: Path) -> None:
    """Reading knows nothing of pruning, rules nothing of the solver, and so on down the pipeline."""
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    later = STAGES[STAGES.index(own) + 1 :]
    assert not [module for module in imported(path) if stage_of(module) in later]


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "rules"], ids=label)
def test_operators_are_named_by_the_rules_alone(path: Path) -> None:
    """No other code asks what operator a node is, except for what it builds itself."""
    operators = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    constants = (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
    named = {text for text in constants if isinstance(text, str) and text in operators}
    assert not named or label(path) in BUILDERS


def test_every_builder_still_names_an_operator() -> None:
    """The list of exceptions holds no file that is gone."""
    assert {ROOT / name for name in BUILDERS} <= set(FILES)
