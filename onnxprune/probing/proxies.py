"""Scores that need no probes: the size of a channel's weights, and chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of
from onnxprune.reading.graph import Shape
from onnxprune.rules.axes import channels_along, leaves


def magnitudes(couplings: Couplings, groups: Sequence[Group]) -> Sensitivities:
    """
    The L2 norm of all weights that go with a channel.

    Source: Li et al. 2017, Pruning Filters for Efficient ConvNets, section 3.1 (there L1 of one filter).
    """
    scores = {group.name: np.sqrt(squared_weights(couplings, group)) for group in groups}
    return sensitivities_of(couplings, scores, criterion="magnitude")


def squared_weights(couplings: Couplings, group: Group) -> np.ndarray:
    """For each channel, the sum of squares of what its slices stand for; divisors do not count."""
    totals = {dim: np.zeros(dim.size) for dim in group.dims}
    for name in dict.fromkeys(slot.tensor for slot in group.slices):
        constant = couplings.graph.constants[name]
        use, tensor = couplings.constant_uses(name)[0]
        if not constant.is_weight or couplings.zeroing.divides(name, use, couplings.graph):
            continue
        axes = couplings.typing.axes(tensor)
        coding = couplings.zeroing.coding(name, use, couplings.graph)
        if coding is None:
            sums = squares_along_axes(constant.shape, constant.blocks())
        else:
            sums = squares_along_axes(constant.shape, [(0, coding.decoded(constant.array(), couplings.graph))])
        for axis, along in zip(axes, sums, strict=True):
            for dim in set(leaves(axis)) & totals.keys():
                channels = channels_along(axis, dim)
                held = channels >= 0
                totals[dim] += np.bincount(channels[held], along[held], dim.size)
    return np.concatenate([totals[dim] for dim in group.dims])


def squares_along_axes(shape: Shape, blocks: Iterable[tuple[int, np.ndarray]]) -> list[np.ndarray]:
    """For each axis of a weight, the sums of squares of its positions; the weight comes in blocks of its first axis."""
    sums = [np.zeros(size) for size in shape]
    for first, block in blocks:
        squares = np.square(block.astype(np.float64))
        for number, size in enumerate(squares.shape):
            along = np.moveaxis(squares, number, 0).reshape(size, -1).sum(1)
            sums[number][slice(first, first + size) if number == 0 else slice(None)] += along
    return sums


def chances(couplings: Couplings, groups: Sequence[Group], seed: int) -> Sensitivities:
    """A random order from a seed: what any criterion has to beat."""
    rng = np.random.default_rng(seed)
    return sensitivities_of(couplings, {group.name: rng.random(group.size) for group in groups}, criterion="random")
