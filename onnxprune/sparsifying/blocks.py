"""
Patterns of zeros: which weights stand in one block, and which of them may go.

A block is m weights in a row along the axis that the layer sums over, all for one output (and, in a convolution, at one
place of its kernel). The last block of an axis may be shorter: what is missing counts as zeros, as it does on hardware,
which pads it with them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.repairing.consumers import Consumer

Candidates = Callable[[np.ndarray], np.ndarray]
"""From saliencies `[features, outputs]` to the weights that may go, as booleans of the same shape."""


def anything(saliency: np.ndarray) -> np.ndarray:
    """Every weight may go."""
    return np.ones(saliency.shape, bool)


def blocks_in(consumer: Consumer, shape: tuple[int, ...], block: int) -> np.ndarray:
    """Numbers of features `[blocks, block]`, block by block; the number of features where a block is too short."""
    rest = np.delete(np.array(shape), consumer.made)
    summed = consumer.summed - (consumer.made < consumer.summed)
    features = int(rest.prod())
    rows = np.moveaxis(np.arange(features).reshape(rest), summed, -1).reshape(-1, rest[summed])
    missing = -rest[summed] % block
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=features).reshape(-1, block)


def lowest_in_blocks(blocks: np.ndarray, stay: int) -> Candidates:
    """All but the `stay` weights of largest saliency in each block may go."""

    def candidates(saliency: np.ndarray) -> np.ndarray:
        padded = np.vstack([saliency, np.full((1, saliency.shape[1]), -np.inf)])
        order = np.argsort(padded[blocks], axis=1, kind="stable")
        low = np.zeros(order.shape, bool)
        np.put_along_axis(low, order[:, : blocks.shape[1] - stay], True, axis=1)
        found = np.zeros(padded.shape, bool)
        found[blocks] = low
        return found[:-1]

    return candidates


def excess(weight: np.ndarray, axis: int, pattern: tuple[int, int]) -> int:
    """How many blocks along the axis hold more numbers other than zero than the pattern allows."""
    stay, block = pattern
    rows = np.moveaxis(weight != 0, axis, -1).reshape(-1, weight.shape[axis])
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % block)))
    return int((padded.reshape(-1, block).sum(1) > stay).sum())
