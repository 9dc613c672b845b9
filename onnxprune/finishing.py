"""What follows once channels are gone: single weights, eight bits, the check, the figures, the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto

from onnxprune.choosing.plan import Plan
from onnxprune.choosing.targets import Targets
from onnxprune.clock import Clock
from onnxprune.coupling.couple import Couplings, couple
from onnxprune.errors import TargetError, VerificationError
from onnxprune.judging.judgement import Judgement
from onnxprune.planning import absolute
from onnxprune.probing.losses import outputs_of
from onnxprune.pruner import Pruned
from onnxprune.quantizing.quantize import check_quantized, quantize
from onnxprune.reading.functions import Inlining, inlined
from onnxprune.reading.read import read
from onnxprune.reporting.measuring import Session, figures, notes_on, parameter_count
from onnxprune.reporting.report import GroupReport, QuantizedFigures, Report, Settings, WeightsFigures
from onnxprune.rewriting.outlining import Outlined, outlined
from onnxprune.rewriting.saving import written_bytes
from onnxprune.sparsifying.checking import check_sparsity
from onnxprune.sparsifying.layers import layers_of
from onnxprune.sparsifying.sparse_form import as_sparse
from onnxprune.sparsifying.sparsify import Criterion, Sparsified, sparsify
from onnxprune.sparsifying.sparsity import Sparsity
from onnxprune.sparsifying.weighing import weights_report
from onnxprune.timing.speed import speed_of
from onnxprune.timing.whole import latency
from onnxprune.verifying.check import Check
from onnxprune.verifying.measure import distance
from onnxprune.verifying.verify import verify


@dataclass(frozen=True)
class Further:
    """
    What is done to a model after channels are gone.

    `weights` become zero, by `criterion`; with `sparse` they are stored as sparse tensors. `quantized`: in eight bits.
    `numbers_left` bounds the parameters that are not zero in the end.
    """

    weights: Sparsity | None = None
    criterion: Criterion = "obs"
    sparse: bool = False
    quantized: bool = False
    numbers_left: float | None = None


@dataclass(frozen=True)
class Made:
    """A model as it is shipped, and the steps that led there."""

    pruned: Pruned
    thinned: Sparsified | None = None
    checks: tuple[Check, ...] = ()
    sparse: ModelProto | None = None
    quantized: ModelProto | None = None
    outlined: Outlined | None = None
    """The model with its local functions again, if it has some."""

    @property
    def floats(self) -> ModelProto:
        """The model in dense floats."""
        return self.thinned.model if self.thinned else self.pruned.model

    @property
    def model(self) -> ModelProto:
        """The model."""
        return self.outlined.model if self.outlined else self.without_functions

    @property
    def without_functions(self) -> ModelProto:
        """The model with the nodes of local functions in place of their calls."""
        return self.quantized or self.sparse or self.floats

    @property
    def plan(self) -> Plan:
        """What of the original stays, with all constants that have numbers of their own."""
        if self.thinned is None:
            return self.pruned.plan
        refitted = dict.fromkeys((*self.pruned.plan.refitted, *self.thinned.constants))
        return replace(self.pruned.plan, refitted=tuple(refitted))


def made(pruned: Pruned, further: Further, session: Session, clock: Clock) -> Made:
    """The pruned model with everything further done to it."""
    found = Made(pruned)
    if further.weights is not None:
        with clock.stage("remove weights"):
            found = thinned(found, further, further.weights, session, clock)
    if further.sparse:
        found = replace(found, sparse=as_sparse(found.floats))
    if further.quantized:
        with clock.stage("quantise"):
            eight_bits = quantize(found.floats, session.calibration)
            check = check_quantized(found.floats, eight_bits)
            found = replace(found, quantized=eight_bits, checks=(*found.checks, check))
    inlining = session.couplings.graph.inlining
    return found if inlining is None or further.quantized else with_functions(found, inlining)


def with_functions(made: Made, inlining: Inlining) -> Made:
    """The model with its local functions again, and the check that taken apart it is the same."""
    again = outlined(made.without_functions, inlining)
    apart, _ = inlined(again.model)
    passed = list(apart.graph.node) == list(made.without_functions.graph.node)
    detail = f"{len(again.kept)} kept, {len(again.inlined)} in place of their calls" if passed else "nodes differ"
    check = Check("functions say what their nodes did", passed, detail)
    return replace(made, outlined=again, checks=(*made.checks, check))


def thinned(made: Made, further: Further, weights: Sparsity, session: Session, clock: Clock) -> Made:
    """The model with single weights zero."""
    dense = made.model
    couplings = couple(read(dense, input_shapes=session.couplings.graph.input_shapes))
    if further.numbers_left is not None and weights.pattern is None:
        weights = Sparsity(max(weights.share, share_to_go(dense, couplings, further.numbers_left)))
    synthetic = session.calibration.synthetic
    found = sparsify(
        couplings,
        session.calibration,
        weights,
        criterion="magnitude" if synthetic else further.criterion,
        refit=not synthetic,
        threads=session.threads,
        progress=clock.progress,
    )
    return replace(made, thinned=found, checks=(check_sparsity(dense, found.model, found.layers, found.constants),))


def share_to_go(dense: ModelProto, couplings: Couplings, numbers_left: float) -> float:
    """
    The share of the weights that has to become zero so that no more numbers are left.

    Raises:
        TargetError: that takes more than all of them.
    """
    size = weight_count(couplings)
    going = parameter_count(dense) - numbers_left
    if going >= size:
        raise TargetError(
            f"Expected at most {numbers_left:,.0f} parameters that are not zero, found {size:,} weights that can be "
            f"removed of {parameter_count(dense):,}. Ask for less, or give no --params with --weights."
        )
    return max(0.0, going / size) if size else 0.0


def weight_count(couplings: Couplings) -> int:
    """How many single weights can be removed."""
    return sum(layer.size for layer in layers_of(couplings))


def shared_budget(targets: Targets, weights: Sparsity | None, couplings: Couplings) -> tuple[Targets, float | None]:
    """
    The bound on parameters as one for channels and single weights together: what is left for channels, and in all.

    The share of the weights says what part of it they take.
    """
    bounds = {name: bound for name, (_, bound) in targets.bounds(couplings.costs).items()}
    if weights is None or "params" not in bounds:
        return targets, None
    whole = couplings.costs.params.at({})
    for_channels = min(bounds["params"] / (1 - weights.share * weight_count(couplings) / max(1.0, whole)), whole)
    return absolute(targets, {**bounds, "params": for_channels}), bounds["params"]


def finished(
    session: Session,
    made: Made,
    settings: Settings,
    notes: Sequence[str],
    clock: Clock,
    judgement: Judgement | None = None,
    wanted: float | None = None,
) -> Report:
    """
    Check the model, measure it at every step, report; `wanted` is the bound on its latency, as a share.

    Raises:
        VerificationError: the model failed its own check and must go no further.
    """
    couplings, plan, dense = session.couplings, made.plan, made.pruned.model
    with clock.stage("verify"):
        verdict = verify(couplings, plan, made.floats, session.calibration)
        verdict = replace(verdict, checks=(*verdict.checks, *made.checks))
    if not verdict.passed:
        listed = "".join(f"\n  - {failure}" for failure in verdict.failures)
        raise VerificationError(
            f"The pruned model failed its own check, so nothing was written:{listed}\n"
            "Leave out the groups at fault with --skip, and please report the model."
        )
    with clock.stage("measure"):
        original = figures(session, couplings.graph.model, couplings.graph.file_bytes, session.outputs)
        after = outputs_of(dense, session.calibration, threads=session.threads)
        smaller = figures(session, dense, written_bytes(dense, couplings.graph), after, plan=plan)
        timed = latency((couplings.graph.model, dense), session.calibration, session.setting)
        widths = {dim: len(stay) for dim, stay in plan.kept(couplings).items()}
        speed = (
            speed_of(couplings, dense, widths, session.calibration, session.setting, timed, wanted) if timed else None
        )
        zeros = weights_measured(session, made, plan) if made.thinned else None
        eight_bits = quantized_measured(session, made, plan) if made.quantized else None
    groups = group_reports(couplings, plan)
    return Report(
        format="onnxprune-report",
        version=1,
        settings=settings,
        loss_name=session.judged_by.name if session.judged_by else "",
        original=original,
        pruned=smaller,
        latency=timed,
        speed=speed,
        distance=distance(session.outputs, after),
        groups=tuple(group for group in groups if not group.inexact or group.after < group.before),
        skipped={group.name: group.inexact for group in groups if group.inexact and group.after == group.before},
        refitted=made.pruned.refitted,
        weights=zeros,
        quantized=eight_bits,
        judgement=judgement,
        bytes=written_bytes(made.model, couplings.graph),
        verdict=verdict,
        notes=(
            *couplings.graph.notes,
            *notes,
            *notes_on_functions(made),
            *notes_on(session, plan, made.pruned.scores, thinned=made.thinned is not None),
        ),
        seconds=clock.seconds,
    )


def group_reports(couplings: Couplings, plan: Plan) -> tuple[GroupReport, ...]:
    """What became of each group."""
    whys = {group.name: group.inexact.text if group.inexact else "" for group in couplings.groups}
    return tuple(GroupReport(group.name, group.size, len(group.kept), whys[group.name]) for group in plan.groups)


def notes_on_functions(made: Made) -> Iterator[str]:
    """Which local functions are still there, and which are not."""
    found = made.outlined
    if found is not None and found.kept:
        yield f"Local functions kept: {', '.join(found.kept)}."
    if found is not None and found.inlined:
        yield f"Local functions whose uses differ, their nodes now in place of the calls: {', '.join(found.inlined)}."


def weights_measured(session: Session, made: Made, plan: Plan) -> WeightsFigures:
    """What the zeros cost, and what they are worth in the file: not in time, on kernels for dense weights."""
    assert made.thinned is not None
    model = made.thinned.model
    outputs = outputs_of(model, session.calibration, threads=session.threads)
    found = weights_report(model)
    return WeightsFigures(
        zeros=found.zeros,
        size=found.size,
        bytes_sparse=found.bytes_sparse,
        figures=figures(session, model, written_bytes(model, session.couplings.graph), outputs, plan=plan),
        layers=made.thinned.layers,
    )


def quantized_measured(session: Session, made: Made, plan: Plan) -> QuantizedFigures:
    """What eight bits cost and save."""
    assert made.quantized is not None
    model = made.quantized
    outputs = outputs_of(model, session.calibration, threads=session.threads)
    measured = figures(session, model, written_bytes(model, session.couplings.graph), outputs, plan=plan)
    return QuantizedFigures(
        figures=replace(measured, params=float(parameter_count(made.floats))),
        latency=latency((session.couplings.graph.model, model), session.calibration, session.setting),
        distance=distance(session.outputs, outputs),
    )
