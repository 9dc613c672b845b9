"""
Which widths of a group are fast: found by timing the layers that have its channels.

Time is no straight line in the width. Kernels work on blocks of channels, so it goes down in stairs, of 16 channels
where AVX-512 is; and a width that is no multiple of some smaller step leaves the fast kernels altogether:

    channels   48   47   46   45   44   40   36   32
    ms        1.0  3.9  3.9  3.9  1.0  1.0  1.0  0.7        step 4, stairs of 16
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.couple import Group
from onnxprune.rules.axes import Dim
from onnxprune.timing.times import LayerTimes, Times

STEPS = (1, 2, 4, 8, 16)
"""The steps that are tried, each twice the one before."""

SLOWER = 1.1
"""A width counts as slow when it takes so many times what a wider one takes: noise is less."""

PART = 0.05
"""Of the time of all layers that have a group, the least that makes a layer worth its step."""

MUCH_SLOWER = 1.2
"""A width on the step that takes so many times what a wider one takes is left out."""

FLAT = 0.35
"""A stair is flat when the narrowest width on it saves no more than this share of what the next stair saves."""

STEEP = 0.5
"""There is no stair when it saves more than this share."""

FELT = 0.04
"""What the next stair must save, as a share of the whole, for its edge to be seen."""

CHOICE, FEW_TO_CHOOSE = 8, 4
"""Steps that are only cheap, not needed, leave so many widths at least; and fewer where losses do not choose."""

FEWEST = 4
"""Widths that even a narrow group has to choose among, however slow they are."""

NARROW = 32
"""All multiples of a few up to here are timed: very narrow layers run on other kernels."""


@dataclass(frozen=True, slots=True)
class Stairs:
    """
    Fast widths of a group.

    `step` is the smallest whose multiples stay on the fast kernels, `edge` how many channels take the same time,
    `widths` are those to choose among, ascending, the full one last; `even_widths` those where nothing tells what each
    loses, more often on edges.
    """

    step: int
    edge: int
    widths: tuple[int, ...]
    even_widths: tuple[int, ...]


def stairs_of(groups: Sequence[Group], times: LayerTimes) -> dict[str, Stairs]:
    """The stairs of each group, by its name; where its layers cannot be timed, all widths are as good."""
    by_layer = {group.name: layer_times(group, times) for group in groups}
    timed = {name: summed(each) for name, each in by_layer.items()}
    steps = {group.name: step_of_layers(group.size, by_layer[group.name], timed[group.name]) for group in groups}
    seen = {group.name: edge_of(group.size, steps[group.name], timed[group.name]) for group in groups}
    usual = {
        step: most_usual(seen[name] for name, other in steps.items() if other == step) for step in {*steps.values()}
    }
    found = {}
    for group in groups:
        step = steps[group.name]
        edge = max(step, seen[group.name] or (usual[step] if step > 1 else 1))
        widths, even_widths = (
            fast_widths(group.size, step, edge, timed[group.name], least) for least in (CHOICE, FEW_TO_CHOOSE)
        )
        found[group.name] = Stairs(step, edge, widths, even_widths)
    return found


def most_usual(edges: Iterable[int]) -> int:
    """The edge that most groups show; 0 if none does."""
    counts = Counter(edge for edge in edges if edge)
    return counts.most_common(1)[0][0] if counts else 0


def layer_times(group: Group, times: LayerTimes) -> list[dict[int, float]]:
    """Microseconds of each layer that has channels of the group, at some widths of it."""
    widths = tried(group.size)
    own = [layer for layer in times.layers.all if not layer.dims.isdisjoint(group.dims)]
    found = [times.of(layer, [at_width(group, width) for width in widths]) for layer in own]
    return [dict(zip(widths, map(float, in_place(one)), strict=True)) for one in found if one is not None]


def summed(by_layer: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Microseconds of all layers together at each width."""
    return {width: sum(one[width] for one in by_layer) for width in (by_layer[0] if by_layer else ())}


def in_place(found: Times) -> np.ndarray:
    """
    Microseconds where the layer stands: blocked kernels, which brought their layout along, find it there.

    One that is not blocked as wider ones are pays what these paid by themselves: it takes the layout off and on again.
    """
    blocked = found.around > 0
    return found.own + np.where(blocked, 0.0, found.around[blocked].max(initial=0.0))


def at_width(group: Group, width: int) -> dict[Dim, int]:
    """The widths of the group's Dims when its first so many channels stay."""
    return {dim: len(stay) for dim, stay in group.per_dim(np.arange(width)).items()}


def middle(size: int) -> int:
    """A width at which there are stairs above and below: about three quarters, but all of a narrow group."""
    return size * 3 // 4 // NARROW * NARROW if size > NARROW * 3 // 2 else size


def tried(size: int) -> list[int]:
    """The widths that are timed."""
    below = [middle(size) - less for less in (0, 1, 2, 4, 8, 12, 16)]
    return sorted({size, *(width for width in (*below, *range(4, NARROW + 1, 4)) if 0 < width < size)})


def step_of_layers(size: int, by_layer: Sequence[Mapping[int, float]], timed: Mapping[int, float]) -> int:
    """
    The smallest step on which all layers stay fast that have a part worth mentioning in the whole.

    Of the whole alone it could not be told: a layer that reads a width leaves its kernels there, the one that makes it
    may not.
    """
    felt = [one for one in by_layer if one[size] >= PART * timed[size]]
    return max((step_of(size, one) for one in felt), default=1)


def step_of(size: int, timed: Mapping[int, float]) -> int:
    """The smallest step from which on no width is slower than the next wider one of the largest step."""
    step = 1
    for tested in [tested for tested in STEPS if tested * 2 * FEWEST <= size]:
        widths = [width for width in timed if width % tested == 0 and width % (2 * tested) and is_near(width, size)]
        if any(timed[width] > SLOWER * timed[above(width, size)] for width in widths):
            step = min(2 * tested, STEPS[-1])
    return step


def is_near(width: int, size: int) -> bool:
    """Is the width one of those around the middle?"""
    return middle(size) - STEPS[-1] <= width <= middle(size)


def above(width: int, size: int) -> int:
    """The next multiple of the largest step, or the full width: it was timed too."""
    return min(-(-width // STEPS[-1]) * STEPS[-1], size)


def edge_of(size: int, step: int, timed: Mapping[int, float]) -> int:
    """How many channels take the same time; 0 where that cannot be seen."""
    top = middle(size)
    if top % STEPS[-1] or top <= STEPS[-1] or not timed:
        return 0
    for edge, inside in ((16, 12), (8, 4), (4, 2)):
        saves = timed[top] - timed[top - edge]
        if edge > step and saves > FELT * timed[top] and timed[top] - timed[top - inside] < FLAT * saves:
            return edge
    saves = timed[top] - timed[top - 16]
    return step if saves > FELT * timed[top] and timed[top] - timed[top - 12] > STEEP * saves else 0


def fast_widths(size: int, step: int, edge: int, timed: Mapping[int, float], least: int) -> tuple[int, ...]:
    """The widths to choose among: on the step or a coarser one that leaves enough, and no slower than wider ones."""
    while step * 2 <= edge and step * 2 * least <= size:
        step *= 2
    widths = [*range(step, size, step), size]
    if step == 1:  # nothing to avoid
        return tuple(widths)
    return tuple(
        width
        for width in widths
        if width not in timed
        or not any(timed[wider] * MUCH_SLOWER < timed[width] for wider in widths if wider > width and wider in timed)
    )
