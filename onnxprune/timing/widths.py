"""Widths of groups that are timed, and as widths of Dims."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.coupling.couple import Group
from onnxprune.rules.axes import Dim
from onnxprune.timing.stairs import Stairs, at_width


def even(group: Group) -> Stairs:
    """Stairs of single channels."""
    widths = tuple(range(1, group.size + 1))
    return Stairs(1, 1, widths, widths)


def nearest(widths: Sequence[int], wanted: float) -> int:
    """The width that is nearest, of two the wider."""
    return min(reversed(widths), key=lambda width: abs(width - wanted))


def dims_at(groups: Sequence[Group], widths: Sequence[int]) -> dict[Dim, int]:
    """Widths of groups as widths of Dims."""
    return {
        dim: size for group, width in zip(groups, widths, strict=True) for dim, size in at_width(group, width).items()
    }
