"""What must hold of every model when three of ten channels of every group go, the smallest in magnitude."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

import onnxprune
from fixtures.catalog import Entry
from onnxprune.job import PruneResult
from onnxprune.reading.graph import Graph, Port, Shape
from onnxprune.reading.observing import Session, moved, session_for
from onnxprune.rewriting.zeroing import zeroed
from onnxprune.verifying.equality import TOLERANCES, rounding_alone
from tests.oracle import Feeds, assert_same_interface, assert_valid, largest_difference, parameters, random_input

RATIO = 0.3
SIZES = 3
SAMPLES = 8
LEAST_LOST = {"convolutional": 0.4, "transformer": 0.25, "recurrent": 0.25, "dense": 0.25}
"""Of the parameters in layers of exact groups, the share that must be gone at least."""

STEPS = ((1, None), (-1, None), (32, None), (1, 0), (2, 0))
"""Ways to other sizes, by how much and on which axis only, tried in turn."""


def accept(entry: Entry, path: Path) -> PruneResult:
    """Prune a model and hold it against everything that was promised."""
    result = onnxprune.prune(path, words_for(path), criterion="magnitude", ratio=RATIO, compensate=False, multiple_of=1)
    assert_sound(result)
    assert_same_at_other_sizes(result)
    assert_smaller(entry, result)
    return result


def words_for(path: Path) -> Feeds | None:
    """Samples for a model that reads words, since none can be made up; for any other nothing is needed."""
    inputs = session_for(str(path)).get_inputs()
    if all(port.type != "tensor(string)" for port in inputs):
        return None
    random = np.random.default_rng(0)
    graph = onnxprune.read(path)
    return {port.name: made_up(port, (SAMPLES, *graph.input_shapes[port.name][1:]), random) for port in graph.inputs}


def assert_sound(result: PruneResult) -> None:
    """It is valid, keeps its interface, and the verdict is equality to 1e-4, by float64 where float32 cannot tell."""
    original, verdict = result.couplings.graph.model, result.report.verdict
    assert_valid(original, result.model)
    assert_same_interface(original, result.model)
    assert verdict.passed, verdict.failures
    outputs = {port.dtype.name for port in result.couplings.graph.outputs}
    tolerance = max((TOLERANCES.get(name, 0.0) for name in outputs), default=0.0)
    assert verdict.difference <= tolerance or any("in float64" in check.detail for check in verdict.checks)
    assert result.report.distance > 0, "pruning changed nothing, so that equality proves nothing"


def assert_same_at_other_sizes(result: PruneResult) -> None:
    """At three settings of the dynamic sizes at which the original runs, the pruned model equals it with zeros."""
    graph, kept = result.couplings.graph, result.plan.kept(result.couplings)
    if not any(port.is_dynamic for port in graph.inputs):
        return
    reference = zeroed(result.couplings, kept)
    before, after, ran = session_for(reference, threads=1), session_for(result.model, threads=1), 0
    for feeds in feeds_at_other_sizes(graph):
        wanted = outputs_of(before, feeds)
        if wanted is None:
            continue
        found = outputs_of(after, feeds)
        sizes = {name: array.shape for name, array in feeds.items()}
        assert found is not None, f"the original runs at {sizes}, the pruned model does not"
        tolerance = max(TOLERANCES.get(array.dtype.name, 0.0) for array in wanted)
        difference = largest_difference(found, wanted)
        same = difference <= tolerance or rounding_alone(reference, result.model, feeds) is not None
        assert same, f"at {sizes} outputs differ by {difference:.1e} of the largest number"
        ran += 1
        if ran == SIZES - 1:
            return
    raise AssertionError(f"the original ran at {1 + ran} of {SIZES} sizes")


def feeds_at_other_sizes(graph: Graph) -> Iterator[Feeds]:
    """Made-up inputs at sizes other than those that the analysis saw first."""
    random = np.random.default_rng(0)
    seen: list[Mapping[str, Shape]] = [graph.input_shapes]
    for step, only in STEPS:
        shapes = moved(graph.inputs, graph.input_shapes, step, only)
        if shapes not in seen and all(min(shape, default=1) > 0 for shape in shapes.values()):
            seen.append(shapes)
            yield {port.name: made_up(port, shapes[port.name], random) for port in graph.inputs}


def made_up(port: Port, shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Normal floats; of integers 0 and 1, which every table has; of words one."""
    if port.dtype.kind == "O":
        return np.full(shape, "red", object)
    if port.dtype.kind in "iu":
        return random.integers(0, 2, shape).astype(port.dtype)
    return random_input(port, shape, random)


def outputs_of(session: Session, feeds: Feeds) -> list[np.ndarray] | None:
    """The tensor outputs; None where the model does not run at these sizes."""
    names = [output.name for output in session.get_outputs() if output.type.startswith("tensor(")]
    try:
        return session.run(names, dict(feeds))
    except Exception:  # ONNX Runtime raises many kinds
        return None


def assert_smaller(entry: Entry, result: PruneResult) -> None:
    """Weights are really gone, and in blocks every width inside them is smaller."""
    lost = share_lost(result)
    assert lost >= LEAST_LOST[entry.kind], f"only {lost:.0%} of the parameters in prunable layers are gone"
    narrowed = Counter(group.before for group in result.report.groups if group.after < group.before)
    missing = Counter(entry.blocks or ()) - narrowed
    assert not missing, f"not narrowed: {dict(missing)} (size: how many)"


def share_lost(result: PruneResult) -> float:
    """Of the parameters in constants that exact groups slice, the share that is gone."""
    groups = [group for group in result.couplings.groups if group.exact]
    sliced = {place.tensor for group in groups for place in group.slices}
    constants = result.couplings.graph.constants
    reachable = sum(constants[name].size for name in sliced if constants[name].is_float)
    return (parameters(result.couplings.graph.model) - parameters(result.model)) / reachable
