"""
Where the columns of a layer's output stand in a tensor behind it, whatever the nodes between are.

    tensor[stack, row, c] = scale[stack, c] · output[some row, columns[stack, c]] + offset[stack, c]

The nodes are run on numbers that tag columns and rows, and what is read off has to foretell what they make of random
numbers. Moves, constant scaling and biases pass; what mixes columns, or treats rows differently, does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.rows import fed

TOLERANCE = 1e-4
"""Of what is foretold, relative to the largest number."""


class Between:
    """The nodes between a layer's output and some tensors behind it, as a session that takes that output."""

    def __init__(self, model: ModelProto, output: str, targets: Sequence[str], element_type: int, threads: int) -> None:
        part = up_to(model, targets)
        for node in part.graph.node:
            node.output[:] = [f"{name}.made" if name == output else name for name in node.output]
        part.graph.input.append(helper.make_tensor_value_info(output, element_type, None))
        self._output, self._targets = output, list(dict.fromkeys(targets))
        self._session = session_for(up_to(part, targets), threads=threads)

    def of(self, output: np.ndarray, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The tensors by name, for such an output and, where shapes depend on it, this feed of the model."""
        found = self._session.run(self._targets, fed(self._session, {**feed, self._output: output}))
        return dict(zip(self._targets, found, strict=True))


@dataclass(frozen=True)
class Selection:
    """What stands where in a stack of matrices: each field is `[..., width]`."""

    columns: np.ndarray
    scale: np.ndarray
    offset: np.ndarray

    def spread(self, stack: tuple[int, ...]) -> Selection:
        """The same for a stack that it broadcasts to, all of it along one axis: `[stack, width]`."""
        width = self.columns.shape[-1]
        every = (np.broadcast_to(part, (*stack, width)) for part in (self.columns, self.scale, self.offset))
        return Selection(*(part.reshape(-1, width) for part in every))

    def at(self, places: int | np.ndarray) -> Selection:
        """What stands at some places of the stack."""
        return Selection(self.columns[places], self.scale[places], self.offset[places])

    def agrees(self, other: Selection) -> bool:
        """Is it the same but for rounding?"""
        numbers = ((self.scale, other.scale), (self.offset, other.offset))
        close = all(np.allclose(*pair, rtol=TOLERANCE, atol=1e-6) for pair in numbers)
        return close and np.array_equal(self.columns, other.columns)


def in_rows(tensor: np.ndarray, axis: int) -> np.ndarray:
    """A stack of matrices whose rows lie along `axis`, which is one of the tensor's last two."""
    return np.moveaxis(tensor, axis, -1)


def selection_of(
    between: Between, target: str, axis: int, like: np.ndarray, made_at: int, feed: Mapping[str, np.ndarray]
) -> Selection | None:
    """What stands where in `target` along `axis`; None if that is more than a selection from an output like this."""
    columns = like.shape[made_at]
    others = (*np.delete(np.array(like.shape), made_at), columns)

    def run(by_rows: np.ndarray) -> np.ndarray:
        numbers = np.moveaxis(np.broadcast_to(by_rows, others), -1, made_at).astype(like.dtype)
        return in_rows(np.asarray(between.of(np.ascontiguousarray(numbers), feed)[target], np.float64), axis)

    offset = run(np.zeros(1))
    scale = run(np.ones(1)) - offset
    if not np.all(np.isfinite(scale) & (scale != 0)):
        return None
    rows = np.arange(like.size // columns).reshape(*others[:-1], 1)
    column = np.rint((run(np.arange(columns)) - offset) / scale)[..., :1, :]
    row = np.rint((run(rows) - offset) / scale)[..., :1]
    if not ((column >= 0) & (column < columns)).all() or not ((row >= 0) & (row < rows.size)).all():
        return None
    scale, offset, at = scale[..., :1, :], offset[..., :1, :], column.astype(int)
    random = np.random.default_rng(0).standard_normal((rows.size, columns))
    foretold = scale * random[row.astype(int), at] + offset
    if not np.abs(run(random.reshape(others)) - foretold).max() <= TOLERANCE * np.abs(foretold).max():
        return None
    return Selection(at[..., 0, :], scale[..., 0, :], offset[..., 0, :])
