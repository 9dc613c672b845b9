"""Several models of one original side by side: a table and a plot of what they do against what they cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

from rich.table import Table

from onnxprune.reporting.report import Report


@dataclass(frozen=True, slots=True)
class Point:
    """
    One model of a sweep.

    `figure` is what `metric` says of it: what was judged where there was a judge, else the accuracy where labels fit,
    else the loss; `original` is the same of the original.
    """

    bound: str
    macs: float
    params: float
    bytes: int
    latency_ms: float
    latency_ratio: float
    metric: str
    figure: float
    original: float


def point_of(bound: str, report: Report) -> Point:
    """The model of this bound as a point."""
    metric, original, figure = figure_of(report)
    timed = (report.quantized or report).latency
    return Point(
        bound=bound,
        macs=report.pruned.macs / max(report.original.macs, 1),
        params=report.pruned.params / max(report.original.params, 1),
        bytes=report.bytes,
        latency_ms=timed.milliseconds[-1] if timed else float("nan"),
        latency_ratio=timed.ratio if timed else float("nan"),
        metric=metric,
        figure=figure,
        original=original,
    )


def figure_of(report: Report) -> tuple[str, float, float]:
    """The metric's name, and what it says of the original and of the model as it is shipped."""
    if report.judgement is not None:
        return report.judgement.metric, report.judgement.original, report.judgement.pruned
    last = report.quantized or report.weights
    shipped = last.figures if last else report.pruned
    if report.original.accuracy is not None and shipped.accuracy is not None:
        return "accuracy", report.original.accuracy, shipped.accuracy
    if report.original.loss is not None and shipped.loss is not None:
        return report.loss_name, report.original.loss, shipped.loss
    return "distance", 0.0, report.distance


def sweep_table(points: Sequence[Point]) -> Table:
    """One line per model."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("asked")
    for heading in ("MACs", "parameters", "bytes", "latency", "ratio", points[0].metric, "change"):
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(
            point.bound,
            f"{point.macs:.1%}",
            f"{point.params:.1%}",
            f"{point.bytes:,}",
            f"{point.latency_ms:.3f} ms",
            f"x{point.latency_ratio:.2f}",
            f"{point.figure:.4g}",
            f"{point.figure - point.original:+.4g}",
        )
    return table


def table_text(points: Sequence[Point]) -> str:
    """The same as comma-separated values."""
    text = io.StringIO()
    names = [entry.name for entry in fields(Point)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(point, name) for name in names] for point in points)
    return text.getvalue()


def plot(points: Sequence[Point]) -> bytes | None:
    """The metric against MACs and against latency, as SVG; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 4), layout="constrained")
    ordered = sorted(points, key=lambda point: point.macs)
    for number, (name, label, whole) in enumerate(
        (("macs", "MACs, share of the original", 1.0), ("latency_ratio", "latency, share of the original", 1.0))
    ):
        axes = figure.add_subplot(1, 2, number + 1)
        axes.plot([getattr(point, name) for point in ordered], [point.figure for point in ordered], "o-")
        axes.plot([whole], [points[0].original], "k*", markersize=10, label="original")
        for point in ordered:
            axes.annotate(
                point.bound, (getattr(point, name), point.figure), textcoords="offset points", xytext=(4, -10)
            )
        axes.set_xlabel(label)
        axes.set_ylabel(points[0].metric)
        axes.grid(alpha=0.3)
        axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg")
    return drawn.getvalue()
