"""The proof, on every run: the pruned model is valid, keeps its interface, and equals the zeroed original."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto
from pydantic import TypeAdapter

from onnxprune.choosing.plan import Plan
from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration, Data, first_line, gather
from onnxprune.reading.functions import inlined
from onnxprune.reading.graph import Graph
from onnxprune.reading.numbers import is_elsewhere, numbers
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.parts import PartedSession, run_each
from onnxprune.reading.records import json_text
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rewriting.zeroing import zeroed
from onnxprune.verifying.branches import forked
from onnxprune.verifying.check import Check
from onnxprune.verifying.checkable import checkable
from onnxprune.verifying.equality import (
    EQUALS_MASKED,
    EQUALS_ZEROED,
    arbitrated,
    equals_zeroed,
    every_branch,
    other_sizes,
    outputs_by_batch,
)

VERIFIED_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """
    What was checked of a pruned model.

    `difference` is the largest relative difference from the zeroed original over all outputs, on `samples` samples.
    """

    checks: tuple[Check, ...]
    difference: float
    samples: int

    @property
    def passed(self) -> bool:
        """Does everything hold?"""
        return all(check.passed for check in self.checks)

    @property
    def equality(self) -> str:
        """What was found about equality with the zeroed original."""
        names = (EQUALS_ZEROED, EQUALS_MASKED)
        return next((check.detail for check in self.checks if check.name in names), "not compared")

    @property
    def is_masked(self) -> bool:
        """Was the model held against the masked form of its original?"""
        return any(check.name == EQUALS_MASKED for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """What does not hold, a line each."""
        return tuple(f"{check.name}: {check.detail}" for check in self.checks if not check.passed)

    def to_json(self) -> str:
        """The verdict as JSON text."""
        return json_text(TypeAdapter(Verdict), self)


def verify(couplings: Couplings, plan: Plan, pruned: ModelProto, data: Data | Calibration | None = None) -> Verdict:
    """
    Check a pruned model against its original.

    Checked are: ONNX's checker with full check, loading in ONNX Runtime, the interface (names, types, dynamic
    dimensions, opsets, metadata), a run at a second batch size where the batch is dynamic, and that the outputs equal
    those of the original with every removed slice set to zero, at other dynamic sizes too; where inexact groups were
    pruned, in its masked form.

    Where the plan says that layers were refitted, the last holds for the model before that, which is made again from
    the plan, and the one that is given may differ from it in the refitted constants only.

    Raises:
        PlanError: the plan was made for another model.
    """
    sample = gather(couplings.graph, data).first(VERIFIED_SAMPLES)
    pruned, _ = inlined(pruned)
    checks = [checker(couplings.graph.model, pruned), interface(couplings.graph.model, pruned)]
    form = plan.form(couplings)
    reference = zeroed(form, plan.kept(form))
    blank = session_for(reference)
    wanted = outputs_by_batch(blank, sample)
    session, loading = loaded(pruned)
    checks.append(loading)
    exact = pruned
    if plan.refitted:
        exact = rewrite_kept(couplings, plan.kept(couplings))
        checks.append(only_refitted(exact, pruned, frozenset(plan.refitted)))
    difference = float("inf")
    if session is not None:
        checks.append(second_batch(session, couplings.graph, sample))
        plain = session if exact is pruned else session_for(exact)
        difference, equality = equals_zeroed(plain, wanted, sample)
        equality = equality if form is couplings else replace(equality, name=EQUALS_MASKED)
        if not equality.passed and np.isfinite(difference):
            equality = arbitrated(equality, reference, exact, sample)
        checks.append(equality)
        settled = couplings.typing.knowable
        if equality.passed and forked(exact, settled):
            checks.append(every_branch(reference, exact, sample, settled))
        if equality.passed and couplings.typing.other_shapes and not isinstance(plain, PartedSession):
            checks.append(other_sizes(blank, plain, reference, exact, couplings))
    return Verdict(tuple(checks), difference, len(sample))


def only_refitted(exact: ModelProto, given: ModelProto, refitted: frozenset[str]) -> Check:
    """Is the model the plain slices but for the constants that were refitted, in their own shapes and types?"""
    name = "only refitted weights differ"
    plain, own = ({t.name: t for t in model.graph.initializer} for model in (exact, given))
    changed = sorted(
        key
        for key in plain.keys() | own.keys()
        if key not in refitted and not (key in plain and key in own and same_tensor(plain[key], own[key]))
    )
    nodes = list(zip(exact.graph.node, given.graph.node, strict=False))
    other = [one.name or one.op_type for one, node in nodes if not same_node(one, node, refitted)]
    if changed or other or len(exact.graph.node) != len(given.graph.node):
        return Check(name, False, f"{', '.join(map(repr, (*changed, *other)))} differs from the plan's")
    both = refitted & plain.keys() & own.keys()
    reformed = [key for key in sorted(both) if form_of(plain[key]) != form_of(own[key])]
    return Check(name, not reformed, f"another form: {reformed}" if reformed else f"{len(refitted)} constants")


def same_tensor(one: TensorProto, other: TensorProto) -> bool:
    """Are the tensors alike, wherever their numbers lie?"""
    if one == other or not (is_elsewhere(one) or is_elsewhere(other)):
        return one == other
    return form_of(one) == form_of(other) and np.array_equal(numbers(one).view(np.uint8), numbers(other).view(np.uint8))


def form_of(tensor: TensorProto) -> tuple[int, ...]:
    """Element type and shape."""
    return (tensor.data_type, *tensor.dims)


def same_node(one: NodeProto, other: NodeProto, refitted: frozenset[str]) -> bool:
    """Are the nodes alike, but for reading a refitted constant, where there was none too, or holding one?"""
    if refitted.intersection(one.output):
        return list(one.output) == list(other.output)
    inputs = list(zip_longest(one.input, other.input, fillvalue=""))
    alike = len(one.input) <= len(other.input) and all(a == b or b in refitted for a, b in inputs)
    return alike and (one.op_type, list(one.output), list(one.attribute)) == (
        other.op_type,
        list(other.output),
        list(other.attribute),
    )


def checker(original: ModelProto, pruned: ModelProto) -> Check:
    """ONNX's own checker, shapes included; an original that it refuses cannot be held against the pruned model."""
    complaint = complaint_about(pruned)
    if not complaint:
        return Check("valid ONNX", True, "checker with full check")
    if complaint_about(original):
        return Check("valid ONNX", True, f"the original is not valid either: {complaint}")
    return Check("valid ONNX", False, complaint)


def complaint_about(model: ModelProto) -> str:
    """The first line of what the checker has to say against the model."""
    try:
        onnx.checker.check_model(checkable(model), full_check=True)
    except Exception as failure:  # the checker raises several kinds
        return first_line(failure)
    return ""


def loaded(pruned: ModelProto) -> tuple[Session | None, Check]:
    """Does ONNX Runtime take it?"""
    try:
        session = session_for(pruned)
        how = "CPU, all optimizations" + (", part by part" if isinstance(session, PartedSession) else "")
        return session, Check("loads in ONNX Runtime", True, how)
    except Exception as failure:  # ONNX Runtime raises many kinds
        return None, Check("loads in ONNX Runtime", False, first_line(failure))


def interface(original: ModelProto, pruned: ModelProto) -> Check:
    """Inputs, outputs, opsets and metadata as they were."""
    changed = list(interface_changes(original, pruned))
    return Check("interface unchanged", not changed, "; ".join(changed) or "names, types, dimensions, opsets, metadata")


def interface_changes(original: ModelProto, pruned: ModelProto) -> Iterator[str]:
    weights = {tensor.name for tensor in original.graph.initializer}
    inputs = [[port for port in model.graph.input if port.name not in weights] for model in (original, pruned)]
    if inputs[0] != inputs[1]:
        yield "the inputs differ"
    if list(original.graph.output) != list(pruned.graph.output):
        yield "the outputs differ"
    for name in ("opset_import", "metadata_props"):
        if list(getattr(original, name)) != list(getattr(pruned, name)):
            yield f"{name} differs"
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if getattr(original, name) != getattr(pruned, name):
            yield f"{name} differs"


def second_batch(session: Session, graph: Graph, sample: Calibration) -> Check:
    """Another number of samples than the one that the analysis saw."""
    if not graph.has_batch:
        return Check("second batch size", True, "the batch size is fixed")
    sizes = (1, 3)
    runs_of_sizes = run_each(session, None, map(sample.together, sizes))
    for size in sizes:
        try:
            next(runs_of_sizes)
        except Exception as failure:  # ONNX Runtime raises many kinds
            if runs(session_for(graph.model), sample.together(size)):
                return Check("second batch size", False, f"fails at {size}: {first_line(failure)}")
            runs_of_sizes = run_each(session, None, map(sample.together, sizes[sizes.index(size) + 1 :]))
    return Check("second batch size", True, f"ran at {' and '.join(map(str, sizes))}")


def runs(session: Session, feeds: Mapping[str, np.ndarray]) -> bool:
    try:
        session.run(None, dict(feeds))
    except Exception:  # ONNX Runtime raises many kinds
        return False
    return True
