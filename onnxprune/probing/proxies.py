"""Scores that need no probes: the size of a channel's weights, and chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.coupling.couple import Couplings, Group
from onnxprune.probing.sensitivities import Sensitivities, sensitivities_of
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
        coding = couplings.zeroing.coding(name, use, couplings.graph)
        numbers = constant.array()
        squares = np.square(numbers.astype(np.float64) if coding is None else coding.decoded(numbers, couplings.graph))
        for number, axis in enumerate(couplings.typing.axes(tensor)):
            along = np.moveaxis(squares, number, 0).reshape(squares.shape[number], -1).sum(1)
            for dim in set(leaves(axis)) & totals.keys():
                channels = channels_along(axis, dim)
                held = channels >= 0
                totals[dim] += np.bincount(channels[held], along[held], dim.size)
    return np.concatenate([totals[dim] for dim in group.dims])


def chances(couplings: Couplings, groups: Sequence[Group], seed: int) -> Sensitivities:
    """A random order from a seed: what any criterion has to beat."""
    rng = np.random.default_rng(seed)
    return sensitivities_of(couplings, {group.name: rng.random(group.size) for group in groups}, criterion="random")
