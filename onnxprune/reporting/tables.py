"""Tables for people, as rich renderables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.markup import escape
from rich.table import Table

from onnxprune.judging.judgement import Judgement
from onnxprune.probing.curves import WidthCurves
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.reporting.inspection import Inspection
from onnxprune.reporting.report import Comparison, Figures, GroupReport, Report
from onnxprune.timing.profile import LayerProfile, Profile
from onnxprune.timing.speed import Speed
from onnxprune.timing.whole import Latency
from onnxprune.verifying.verify import Verdict

MOST_ROWS = 40

OWN_DOMAIN = "com.microsoft."
"""Of ONNX Runtime's own operators; the table leaves it out."""

LEAST_FELT = 0.005
"""Layers that take less of the time than this share are told of together."""


def summary_table(report: Report) -> Table:
    """Before and after, in the figures a user decides by; then what single weights and eight bits did besides."""
    table = figures_table(report.original, report.pruned, report.latency, report.loss_name)
    if report.speed is not None:
        add_speed(table, report.speed, report.latency)
    if report.weights is not None:
        add_step(table, "weights", report.weights.figures, report)
        zeros, size = report.weights.zeros, report.weights.size
        table.add_row("  zeros (no faster on dense kernels)", "", f"{zeros:,} of {size:,}", f"{zeros / size:.1%}")
        sparse = report.weights.bytes_sparse
        table.add_row("  bytes with sparse tensors", "", f"{sparse:,}", share(sparse, report.original.bytes))
    if report.quantized is not None:
        add_step(table, "int8", report.quantized.figures, report)
        timed = report.quantized.latency
        assert timed is not None  # what is quantised is run whole
        table.add_row("  latency", "", f"{timed.milliseconds[-1]:.3f} ms", f"x{timed.ratio:.2f}")
    return table


def add_speed(table: Table, speed: Speed, timed: Latency | None) -> None:
    """The latency in the settings that were not asked for, and what was predicted."""
    for found in (speed.one_thread, speed.all_threads):
        if timed is None or found.threads != timed.threads:
            add_latency(table, found)
    if speed.predicted is not None:
        table.add_row("  predicted", "", "", f"x{speed.predicted:.2f}")


def add_latency(table: Table, timed: Latency) -> None:
    """Both models in turn, in one setting."""
    first, second = timed.milliseconds
    spread = f"x{timed.ratio:.2f} ({timed.low:.2f}-{timed.high:.2f})"
    threads = "all threads" if not timed.threads else f"{timed.threads} thread{'s' if timed.threads > 1 else ''}"
    table.add_row(f"latency, batch {timed.batch}, {threads}", f"{first:.3f} ms", f"{second:.3f} ms", spread)


def add_step(table: Table, name: str, found: Figures, report: Report) -> None:
    """What a further step left of accuracy and loss, and the bytes."""
    table.add_section()
    table.add_row(f"[bold]after {name}[/]", "", "", "")
    if report.original.accuracy is not None and found.accuracy is not None:
        points = 100 * (found.accuracy - report.original.accuracy)
        table.add_row("  accuracy", "", f"{found.accuracy:.2%}", f"{points:+.2f} points")
    if found.loss is not None:
        table.add_row(f"  loss ({report.loss_name})", "", f"{found.loss:.4g}", "")
    table.add_row("  bytes", "", f"{found.bytes:,}", share(found.bytes, report.original.bytes))


def judgement_table(judgement: Judgement) -> Table:
    """What the model does on samples that pruning did not use, and every model that was looked at on the way."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{judgement.metric} on {judgement.samples:,} samples that pruning did not use")
    for heading in ("drop", f"at most, {judgement.confidence:.6g} sure"):
        table.add_column(heading, justify="right")
    for trial in judgement.trials:
        if trial.drop is not None:
            verdict = "kept" if trial.accepted else "too much"
            name = f"tried {trial.share:.1%} of the MACs: {verdict}"
            table.add_row(name, f"{trial.drop.mean:+.4g}", f"{trial.drop.upper:.4g}")
    figures = f"{judgement.original:.4g} -> {judgement.pruned:.4g}"
    table.add_row(f"this model: {figures}", f"{judgement.drop.mean:+.4g}", f"{judgement.drop.upper:.4g}")
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Two models side by side."""
    table = figures_table(comparison.original, comparison.pruned, comparison.latency, comparison.loss_name)
    table.add_row("distance of outputs", "0", f"{comparison.distance:.3g}", "relative")
    return table


def figures_table(original: Figures, pruned: Figures, timed: Latency | None, loss_name: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, justify in (("", "left"), ("original", "right"), ("pruned", "right"), ("change", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # a literal of the two
    if original.accuracy is not None and pruned.accuracy is not None:
        points = 100 * (pruned.accuracy - original.accuracy)
        table.add_row("accuracy", f"{original.accuracy:.2%}", f"{pruned.accuracy:.2%}", f"{points:+.2f} points")
    if original.loss is not None and pruned.loss is not None:
        table.add_row(f"loss ({loss_name})", f"{original.loss:.4g}", f"{pruned.loss:.4g}", "")
    for name, before, after in (
        ("MACs", original.macs, pruned.macs),
        ("parameters", original.params, pruned.params),
        ("bytes", original.bytes, pruned.bytes),
    ):
        table.add_row(name, f"{before:,.0f}", f"{after:,.0f}", share(after, before))
    if timed is not None:
        add_latency(table, timed)
    return table


def profile_table(profile: Profile) -> Table:
    """The layers that take most of the time, in the order in which they run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "runs as", "ms", "of all", "MACs", "GFLOP/s", "stairs"):
        table.add_column(heading, justify="left" if heading in ("layer", "runs as", "stairs") else "right")
    whole = sum(layer.milliseconds for layer in profile.layers) + profile.between
    shown, rest = felt(profile.layers, whole)
    for layer in shown:
        table.add_row(
            escape(layer.name),
            escape(" + ".join(dict.fromkeys(kernel.removeprefix(OWN_DOMAIN) for kernel in layer.kernels))),
            f"{layer.milliseconds:.3f}",
            f"{layer.milliseconds / whole:.1%}",
            f"{layer.macs:,.0f}",
            f"{layer.gflops:.1f}",
            escape(stairs_text(layer)),
        )
    if rest:
        beside = sum(layer.milliseconds for layer in rest)
        macs = f"{sum(layer.macs for layer in rest):,.0f}"
        table.add_row(f"... {len(rest)} more layers", "", f"{beside:.3f}", f"{beside / whole:.1%}", macs)
    table.add_row("between layers", "", f"{profile.between:.3f}", f"{profile.between / whole:.1%}")
    table.add_row("[bold]a run[/]", "", f"{profile.milliseconds:.3f}", "", f"{profile.macs:,.0f}")
    return table


def felt(layers: Sequence[LayerProfile], whole: float) -> tuple[list[LayerProfile], list[LayerProfile]]:
    """Layers that take a part of the time that can be felt, at most so many; and the rest."""
    largest = sorted(layers, key=lambda layer: -layer.milliseconds)[:MOST_ROWS]
    shown = [layer for layer in layers if layer in largest and layer.milliseconds > LEAST_FELT * whole]
    return shown, [layer for layer in layers if layer not in shown]


def stairs_text(layer: LayerProfile) -> str:
    """Where its groups are on their stairs: the width, and the edge that takes as long, where that is another."""
    found = []
    for at in layer.positions:
        beyond = f" of {at.next_edge}" if at.next_edge != at.width else ""
        found.append(f"{at.width}{beyond}" + (f" (step {at.step})" if at.width % at.step else ""))
    return ", ".join(found)


def profiles_table(before: Profile, after: Profile) -> Table:
    """Two models layer by layer."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "ms", "pruned", "change", "MACs left", "GFLOP/s", "pruned", "stairs", "pruned"):
        table.add_column(heading, justify="left" if heading in ("layer", "stairs") else "right")
    others = {layer.name: layer for layer in after.layers}
    whole = sum(layer.milliseconds for layer in before.layers) + before.between
    shown, _ = felt(before.layers, whole)
    for layer in shown:
        other = others.get(layer.name)
        if other is None:
            table.add_row(escape(layer.name), f"{layer.milliseconds:.3f}", "gone")
            continue
        table.add_row(
            escape(layer.name),
            f"{layer.milliseconds:.3f}",
            f"{other.milliseconds:.3f}",
            f"x{other.milliseconds / layer.milliseconds:.2f}",
            share(other.macs, layer.macs).removesuffix(" left"),
            f"{layer.gflops:.1f}",
            f"{other.gflops:.1f}",
            escape(stairs_text(layer)),
            escape(stairs_text(other)),
        )
    table.add_row("between layers", f"{before.between:.3f}", f"{after.between:.3f}")
    ratio = f"x{after.milliseconds / before.milliseconds:.2f}"
    table.add_row("[bold]a run[/]", f"{before.milliseconds:.3f}", f"{after.milliseconds:.3f}", ratio)
    return table


def share(after: float, before: float) -> str:
    return f"{after / before:.1%} left" if before else ""


def group_table(groups: Iterable[GroupReport]) -> Table:
    """Channels of each group that lost some."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group")
    table.add_column("channels", justify="right")
    table.add_column("left", justify="right")
    changed = [group for group in groups if group.after < group.before]
    for group in changed[:MOST_ROWS]:
        table.add_row(escape(group.name), str(group.before), str(group.after))
    if len(changed) > MOST_ROWS:
        table.add_row(f"... and {len(changed) - MOST_ROWS} more groups", "", "")
    return table


def inspection_table(inspection: Inspection) -> Table:
    """Groups: what they slice, what they cost, whether their removal is exact."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group")
    table.add_column("channels", justify="right")
    table.add_column("MACs", justify="right")
    table.add_column("params", justify="right")
    table.add_column("exact")
    table.add_column("slices")
    for group in inspection.groups:
        first = [f"{slot.tensor}[{slot.axis}]" for slot in group.slices[:2]]
        more = f" +{len(group.slices) - 2}" if len(group.slices) > 2 else ""
        how = "yes" if group.exact else "with --inexact" if group.proven else "no"
        exact = how if group.exact else f"{how}: {group.reason}"
        table.add_row(
            escape(group.name),
            str(group.channels),
            f"{group.macs:.1%}",
            f"{group.params:.1%}",
            escape(exact),
            escape(", ".join(first) + more),
        )
    return table


def frozen_table(inspection: Inspection) -> Table:
    """What stays, and why."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("frozen", "positions", "because", "at node"):
        table.add_column(heading, justify="right" if heading == "positions" else "left")
    for frozen in inspection.frozen[:MOST_ROWS]:
        first = f"{frozen.slices[0].tensor}[{frozen.slices[0].axis}]"
        more = f" +{len(frozen.slices) - 1}" if len(frozen.slices) > 1 else ""
        table.add_row(escape(first + more), str(frozen.positions), escape(frozen.reason), escape(frozen.node))
    if len(inspection.frozen) > MOST_ROWS:
        table.add_row(f"... and {len(inspection.frozen) - MOST_ROWS} more; see --json", "", "", "")
    return table


def scores_table(scores: Sensitivities) -> Table:
    """The spread of each group's scores."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group")
    for heading in ("channels", "lowest", "median", "highest", "mean stderr"):
        table.add_column(heading, justify="right")
    for entry in scores.groups[:MOST_ROWS]:
        ordered = sorted(entry.scores)
        numbers = (ordered[0], ordered[len(ordered) // 2], ordered[-1], sum(entry.stderr) / len(entry.stderr))
        table.add_row(escape(entry.name), str(len(ordered)), *(f"{number:.3g}" for number in numbers))
    return table


def curves_table(curves: WidthCurves) -> Table:
    """Each group's loss change at its widths, widest first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group")
    table.add_column("width: loss change")
    for curve in curves.groups[:MOST_ROWS]:
        points = zip(curve.widths, curve.losses, strict=True)
        table.add_row(escape(curve.name), "  ".join(f"{width}: {loss:.2g}" for width, loss in points))
    return table


def verdict_table(verdict: Verdict) -> Table:
    """One line per check."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for check in verdict.checks:
        table.add_row("[green]ok[/]" if check.passed else "[red]FAILED[/]", check.name, escape(check.detail))
    return table
