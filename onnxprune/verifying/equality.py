"""Do two models compute the same: the pruned one, and the original with the removed slices zeroed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.couple import Couplings
from onnxprune.probing.calibration import Calibration, first_line
from onnxprune.reading.numbers import fits_whole
from onnxprune.reading.observing import Session, session_for
from onnxprune.reading.parts import run_each
from onnxprune.verifying.branches import decided
from onnxprune.verifying.check import Check
from onnxprune.verifying.other_sizes import feeds_of_other_sizes
from onnxprune.verifying.precise import outputs_in_float64

TOLERANCES = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest difference from the zeroed original, relative to the output's largest number, by the output's dtype."""

EQUALS_ZEROED = "equals the zeroed original"
EQUALS_MASKED = "equals the masked original"
"""The same where inexact groups were pruned: their sums and means are taken over the kept positions."""

FLOAT64_TOLERANCE = 1e-5
"""The same, where float64 has to decide."""

SHRINKS = 1e-6
"""Of a difference in float32, what is left of it in float64 if it is rounding."""

SAMPLES_A_RUN = 8


def outputs_by_batch(session: Session, sample: Calibration) -> list[dict[str, np.ndarray]]:
    """Every tensor output, batch by batch."""
    names = [output.name for output in session.get_outputs() if output.type.startswith("tensor(")]
    feeds = (sample.at(sample.filled(samples)) for samples in sample.batches(SAMPLES_A_RUN))
    return [dict(zip(names, values, strict=True)) for values in run_each(session, names, feeds)]


def equals_zeroed(pruned: Session, wanted: list[dict[str, np.ndarray]], sample: Calibration) -> tuple[float, Check]:
    """Outputs on every sample against those of the zeroed original, relative to each output's largest number."""
    names = list(wanted[0])
    if not set(names) <= {output.name for output in pruned.get_outputs()}:
        return float("inf"), Check(EQUALS_ZEROED, False, "outputs are missing")
    try:
        batches = outputs_by_batch(pruned, sample)
    except Exception as failure:  # ONNX Runtime raises many kinds
        return float("inf"), Check(EQUALS_ZEROED, False, f"does not run: {first_line(failure)}")
    worst: dict[str, float] = dict.fromkeys(names, 0.0)
    largest: dict[str, float] = dict.fromkeys(names, 0.0)
    limits: dict[str, float] = {}
    for expected, found in zip(wanted, batches, strict=True):
        for name in names:
            limits[name] = TOLERANCES.get(expected[name].dtype.name, 0.0)
            worst[name] = max(worst[name], largest_difference(found[name], expected[name]))
            largest[name] = max(largest[name], largest_number(expected[name]))
    relative = {name: worst[name] / (largest[name] or 1.0) for name in names}
    failing = {name: value for name, value in relative.items() if not value <= limits[name]}
    top = max(relative.values(), default=0.0)
    if failing:
        name = max(failing, key=lambda key: failing[key])
        return top, Check(EQUALS_ZEROED, False, f"output {name!r} differs by {failing[name]:.1e}")
    return top, Check(EQUALS_ZEROED, True, f"largest relative difference {top:.1e}")


def every_branch(reference: ModelProto, pruned: ModelProto, sample: Calibration, settled: Set[str]) -> Check:
    """Do both agree whichever branch is taken, not only where the samples lead? Where the original runs at all."""
    name, ran = "equals it in every branch", 0
    for way in (True, False):
        blank, other = decided(reference, way, settled), decided(pruned, way, settled)
        try:
            wanted = outputs_by_batch(session_for(blank), sample)
        except Exception:  # the samples do not suit this branch
            continue
        _, equality = equals_zeroed(session_for(other), wanted, sample)
        equality = equality if equality.passed else arbitrated(equality, blank, other, sample)
        if not equality.passed:
            return Check(name, False, f"with every condition {str(way).lower()}, {equality.detail}")
        ran += 1
    return Check(name, True, f"{ran} of 2 settings of all conditions ran")


def other_sizes(
    blank: Session, plain: Session, reference: ModelProto, pruned: ModelProto, couplings: Couplings
) -> Check:
    """Do both agree at the other dynamic sizes at which the original runs?"""
    name, ran = "equals it at other sizes", 0
    for feed in feeds_of_other_sizes(couplings):
        try:
            wanted = outputs_by_batch(blank, feed)
        except Exception:  # the structure ran at this size; these numbers do not suit it
            continue
        _, equality = equals_zeroed(plain, wanted, feed)
        equality = equality if equality.passed else arbitrated(equality, reference, pruned, feed)
        if not equality.passed:
            shapes = ", ".join(f"{name} {list(array.shape[1:])}" for name, array in feed.arrays.items())
            return Check(name, False, f"for inputs {shapes}, {equality.detail}")
        ran += 1
    return Check(name, True, f"ran at {ran}")


def arbitrated(check: Check, reference: ModelProto, pruned: ModelProto, sample: Calibration) -> Check:
    """Where float32 outputs differ: does float64 say of these samples that rounding is all there is to it?"""
    if not fits_whole(reference):
        return check
    sessions, apart = (session_for(reference), session_for(pruned)), 0.0
    names = [output.name for output in sessions[0].get_outputs() if output.type.startswith("tensor(")]
    for samples in sample.batches(SAMPLES_A_RUN):
        feeds = sample.at(sample.filled(samples))
        try:
            if within_tolerance(*(session.run(names, feeds) for session in sessions)):
                continue
            found = rounding_alone(reference, pruned, feeds)
        except Exception:  # an operator that the reference implementation lacks: float32 has the last word
            return check
        if found is None:
            return check
        apart = max(apart, found)
    detail = f"{check.detail} in float32, whose rounding this model amplifies; by {apart:.1e} in float64"
    return Check(check.name, True, detail)


def within_tolerance(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> bool:
    """Are all these outputs as near to one another as they must be, each by its own largest number here?"""
    pairs = zip(wanted, found, strict=True)
    return all(largest_difference(b, a) <= TOLERANCES.get(a.dtype.name, 0.0) * largest_number(a) for a, b in pairs)


def rounding_alone(reference: ModelProto, pruned: ModelProto, feeds: Mapping[str, np.ndarray]) -> float | None:
    """
    The largest relative difference in float64, if it says that only rounding parts the models; else None.

    Rounding it is where nothing is left of the difference, by the output's largest number, or where it shrinks as
    rounding does: an output that is zero but for rounding has no number to measure by.
    """
    largest = 0.0
    wanted, found = outputs_in_float64(reference, feeds), outputs_in_float64(pruned, feeds)
    names = [name for name, array in wanted.items() if isinstance(array, np.ndarray)]
    coarse = [session_for(model).run(names, dict(feeds)) for model in (reference, pruned)]
    for name, one, other in zip(names, *coarse, strict=True):
        apart = largest_difference(found[name], wanted[name])
        relative, before = apart / (largest_number(wanted[name]) or 1.0), largest_difference(one, other)
        if relative > FLOAT64_TOLERANCE and not (np.isfinite(before) and apart <= SHRINKS * before):
            return None
        largest = max(largest, relative if relative <= FLOAT64_TOLERANCE else apart)
    return largest


def largest_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Where both are NaN or the same infinity, they agree."""
    if one.shape != other.shape:
        return float("inf")
    if one.dtype.kind not in "fV":
        return float((one != other).sum())
    a, b = one.astype(np.float64), other.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(same, 0.0, np.abs(a - b))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


def largest_number(values: np.ndarray) -> float:
    if values.dtype.kind not in "fV":
        return 1.0
    finite = values.astype(np.float64)
    return float(np.abs(finite[np.isfinite(finite)]).max(initial=0.0))
