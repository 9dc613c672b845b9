"""The one oracle: removing channels and zeroing them give the same outputs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import ModelProto

import onnxprune.rules  # noqa: F401  (the rules register)
from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings, Group, couple
from onnxprune.reading.graph import Graph, Port, constants_of, ports_of
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rewriting.zeroing import zeroed
from onnxprune.rules.axes import Dim
from onnxprune.verifying.equality import rounding_alone

TOLERANCE = 1e-5
"""Largest difference allowed, relative to the largest number of the output."""

Feeds = Mapping[str, np.ndarray]


def coupled(model: ModelProto) -> Couplings:
    """The model's couplings; the test is skipped when this ONNX Runtime has no such operator or version."""
    try:
        session_for(model)
    except Exception as failure:
        if re.search("NOT_IMPLEMENTED|under development|Unsupported model IR version", str(failure)):
            pytest.skip(str(failure))
        raise
    return couple(read(model))


def assert_removal_equals_zeroing(
    model: ModelProto,
    *,
    groups: Mapping[str, int] | Sequence[int] | None = None,
    inexact: Mapping[str, int] | Sequence[int] = (),
    proven: bool = True,
    seed: int = 0,
) -> Couplings:
    """
    Remove random channels of every exact group, of one group after the other and then of all together: the pruned model
    is valid, keeps its interface, and computes what the original computes with those channels zeroed.

    `groups` and `inexact` say which exact and which inexact groups must be found: their sizes, by name or in any order;
    without `groups` there must be some. Removing from inexact groups must equal masking, if they are `proven`.
    """
    couplings = coupled(model)
    exact = [group for group in couplings.groups if group.exact]
    assert exact or groups is not None, "there is nothing to prune; expect it with groups={}"
    if groups is not None:
        assert_found(exact, groups)
        assert_found([group for group in couplings.groups if not group.exact], inexact)
    if exact:
        assert_every_removal_is_exact(couplings, seed=seed)
        assert_pruning_matters(couplings, random_selection(exact, np.random.default_rng(seed)), seed=seed)
    if proven and len(exact) < len(couplings.groups):
        assert_removal_equals_masking(couplings, seed=seed)
    return couplings


def assert_every_removal_is_exact(couplings: Couplings, *, seed: int = 0) -> None:
    """Remove random channels of one exact group after the other, and then of all together."""
    exact = [group for group in couplings.groups if group.exact]
    random = np.random.default_rng(seed)
    for group in exact if len(exact) > 1 else ():
        assert_selection_is_exact(couplings, random_selection([group], random), seed=seed)
    if exact:
        assert_selection_is_exact(couplings, random_selection(exact, random), seed=seed)


def assert_inexact(model: ModelProto, groups: Mapping[str, int], *, seed: int = 0) -> Couplings:
    """
    These groups and no others are inexact, and rightly so: removing some of their channels leaves a valid model that
    does not compute what zeroing them gives.
    """
    couplings = coupled(model)
    inexact = [group for group in couplings.groups if not group.exact]
    assert_found(inexact, groups)
    random = np.random.default_rng(seed)
    for group in inexact:
        kept = random_selection([group], random)
        pruned, blank = rewrite_kept(couplings, kept), zeroed(couplings, kept)
        assert_valid(model, pruned)
        assert_same_interface(model, pruned)
        feeds = next(feeds_of(couplings.graph, seed))
        difference = largest_difference(run(pruned, feeds), run(blank, feeds))
        assert not difference <= TOLERANCE, f"{group.name} is called inexact, but removing equals zeroing"
    assert_removal_equals_masking(couplings, seed=seed)
    return couplings


def assert_removal_equals_masking(couplings: Couplings, *, seed: int = 0) -> None:
    """
    The masked form of the model computes what the model does, and in it all groups are exact: with random channels of
    every inexact group zeroed there, of one group after the other and then of all groups together, it computes what the
    rewritten model does.
    """
    masked = couplings.masked
    assert_same_outputs(masked.graph.model, couplings.graph.model, feeds_of(couplings.graph, seed))
    assert [group.name for group in masked.groups if not group.exact] == []
    random = np.random.default_rng(seed)
    selections = [[group] for group in couplings.groups if not group.exact]
    for selected in (*selections, list(couplings.groups)):
        assert_masking_is_exact(couplings, kept_channels(selected, random), seed=seed)


def assert_masking_is_exact(couplings: Couplings, kept: Mapping[str, np.ndarray], *, seed: int = 0) -> None:
    """Removing what `kept` leaves out, by the names of groups, equals zeroing it in the masked form."""
    own, masked = (
        {dim: stay for name in kept for dim, stay in form.group(name).per_dim(kept[name]).items()}
        for form in (couplings, couplings.masked)
    )
    pruned, blank = rewrite_kept(couplings, own), zeroed(couplings.masked, masked)
    assert_valid(couplings.graph.model, pruned)
    assert_same_interface(couplings.graph.model, pruned)
    assert_same_outputs(pruned, blank, feeds_of(couplings.graph, seed))


def reasons(couplings: Couplings) -> set[str]:
    """Why channels are frozen."""
    return {refusal.reason.text for refusal in couplings.refusals}


def assert_found(found: Sequence[Group], expected: Mapping[str, int] | Sequence[int]) -> None:
    """The groups are the expected ones."""
    if isinstance(expected, Mapping):
        assert {group.name: group.size for group in found} == dict(expected)
    else:
        assert sorted(group.size for group in found) == sorted(expected)


def random_selection(groups: Sequence[Group], random: np.random.Generator) -> dict[Dim, np.ndarray]:
    """Some channels of every group stay, at least one, and at least one goes."""
    kept = kept_channels(groups, random)
    return {dim: stay for group in groups for dim, stay in group.per_dim(kept[group.name]).items()}


def kept_channels(groups: Sequence[Group], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Some channels of every group, by its name: at least one, and not all."""
    found = {}
    for group in groups:
        count = int(random.integers(1, group.size))
        found[group.name] = np.sort(random.choice(group.size, count, replace=False))
    return found


def assert_selection_is_exact(couplings: Couplings, kept: Kept, *, seed: int = 0) -> None:
    """Removing what `kept` leaves out equals zeroing it."""
    original = couplings.graph.model
    pruned, blank = rewrite_kept(couplings, kept), zeroed(couplings, kept)
    assert_valid(original, pruned)
    assert_same_interface(original, pruned)
    assert_same_outputs(pruned, blank, feeds_of(couplings.graph, seed))


def assert_pruning_matters(couplings: Couplings, kept: Kept, *, seed: int = 0) -> None:
    """Parameters really go, and zeroing them changes the outputs: otherwise the comparison would prove nothing."""
    original = couplings.graph.model
    assert parameters(rewrite_kept(couplings, kept)) < parameters(original), "no parameter went"
    feeds = next(feeds_of(couplings.graph, seed))
    change = largest_difference(run(zeroed(couplings, kept), feeds), run(original, feeds))
    assert change > TOLERANCE, "zeroing changed nothing"


def assert_valid(original: ModelProto, pruned: ModelProto) -> None:
    """The checker has nothing to say about the pruned model, unless it complains about the original already."""
    for full in (False, True):
        if not complaint(original, full=full):
            assert not complaint(pruned, full=full)


def complaint(model: ModelProto, *, full: bool) -> str:
    """What the checker (if `full`, shape inference as well) has to say against the model."""
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as failure:
        return str(failure)
    return ""


def assert_same_interface(original: ModelProto, pruned: ModelProto) -> None:
    """Same names, types, sizes and dynamic dimensions of all inputs and outputs."""
    assert tuple(ports_of(pruned.graph)) == tuple(ports_of(original.graph))
    assert list(pruned.graph.output) == list(original.graph.output)


def assert_same_outputs(one: ModelProto, other: ModelProto, every_feeds: Iterator[Feeds]) -> None:
    """Both models compute the same, at every size."""
    sessions = [session_for(model, threads=1) for model in (one, other)]
    for feeds in every_feeds:
        left, right = (session.run(None, dict(feeds)) for session in sessions)
        difference = largest_difference(left, right)
        same = difference <= TOLERANCE or rounding_alone(other, one, dict(feeds)) is not None
        assert same, f"outputs differ by {difference:.1e} of the largest number"


def largest_difference(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    """The largest difference relative to the largest number of the same output; infinite if a number is not finite."""
    worst = 0.0
    for one, other in zip(left, right, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        one, other = one.astype(np.float64), other.astype(np.float64)
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return np.inf
        worst = max(worst, float(np.abs(one - other).max(initial=0)) / max(float(np.abs(other).max(initial=0)), 1e-30))
    return worst


def run(model: ModelProto, feeds: Feeds) -> list[np.ndarray]:
    """The model's outputs."""
    return session_for(model, threads=1).run(None, dict(feeds))


def feeds_of(graph: Graph, seed: int) -> Iterator[Feeds]:
    """Random inputs at the sizes observed at first, and at another batch size where that is dynamic."""
    random = np.random.default_rng(seed)
    yield {port.name: random_input(port, graph.input_shapes[port.name], random) for port in graph.inputs}
    batches = {port.shape[0] for port in graph.inputs if port.shape and not isinstance(port.shape[0], int)}
    if batches:
        yield {
            port.name: random_input(
                port,
                tuple(
                    size + 1 if said in batches else size
                    for said, size in zip(port.shape or (), graph.input_shapes[port.name], strict=True)
                ),
                random,
            )
            for port in graph.inputs
        }


def random_input(port: Port, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Normal floats, small integers, or truths."""
    if port.dtype.kind == "b":
        return random.random(shape) < 0.5
    if port.dtype.kind in "iu":
        return random.integers(0, 3, shape).astype(port.dtype)
    return random.standard_normal(shape).astype(port.dtype)


def parameters(model: ModelProto) -> int:
    """How many learned numbers are stored in the model."""
    return sum(constant.size for constant in constants_of(model.graph).values() if constant.is_weight)
