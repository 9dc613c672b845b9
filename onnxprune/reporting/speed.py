"""What a user should know of speed, in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.reporting.report import Report
from onnxprune.timing import speed
from onnxprune.timing.speed import SlowLayer

MOST_NAMED = 5

NEAR = 0.05
"""A bound on the latency counts as met when the ratio measured in the end is above it by no more than this share."""


def words_on_speed(report: Report) -> Iterator[str]:
    """Where a smaller model is no faster, what keeps it so, what was lost on the way, and a bound that was missed."""
    found = report.speed
    if found is None:
        return
    if found.wanted is not None and report.latency is not None and report.latency.ratio > found.wanted * (1 + NEAR):
        yield (
            f"The bound on the latency was missed: the best that was found takes x{report.latency.ratio:.2f} of the "
            f"original's, x{found.wanted:.2f} was asked for."
        )
    for timed, how in ((found.one_thread, "one thread"), (found.all_threads, "all threads")):
        if found.at_fault and timed.ratio > speed.NO_FASTER:
            yield (
                f"The model is smaller but not faster with {how}: its latency is x{timed.ratio:.2f} "
                f"({timed.low:.2f}-{timed.high:.2f}) of the original's."
            )
    if found.at_fault:
        yield f"Layers that take more than their share: {'; '.join(map(told, found.at_fault))}."
    if found.lost:
        named = ", ".join(f"{one.node!r} ({one.before or 'part of another'})" for one in found.lost[:MOST_NAMED])
        more = f" and {len(found.lost) - MOST_NAMED} more" if len(found.lost) > MOST_NAMED else ""
        yield f"Nodes that ran blocked or fused before and do not now: {named}{more}."


def told(layer: SlowLayer) -> str:
    """A layer, its time before and after, and what is left of its multiply-accumulates."""
    before, after = layer.milliseconds
    left = f" at {layer.macs[1] / layer.macs[0]:.0%} of its MACs" if layer.macs[0] else ""
    return f"{layer.name!r} {before:.3f} -> {after:.3f} ms{left}"
