"""What is fed to the part of a graph behind a cut, with gates closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxprune.probing.engine.tasks import OPEN, Closing, Probe, Split, Taking, gate_values


class GatedFeeds:
    """
    Feeds in which gates are closed for some probes, and opened again.

    The tensors that come across are copied once for all probes of a portion; a probe then changes only its channels.
    """

    def __init__(
        self, split: Split, kept: Mapping[str, np.ndarray], fixed: dict[str, np.ndarray], rows: int, repeats: int
    ) -> None:
        self.closings = split.closings
        self.rows, self.repeats = rows, repeats
        self.feeds = dict(fixed)
        self.whole = {}
        for closing in self.closings:
            if closing.fed is not None:
                self.feeds[closing.input] = np.array(fixed[closing.fed])
                self.whole[closing.input] = moved(kept[closing.fed], closing)

    def closed(self, probes: Sequence[Probe]) -> dict[str, np.ndarray]:
        """The feeds with the gates of these probes closed."""
        for closing in self.closings:
            if closing.fed is None:
                self.feeds[closing.input] = self._gate(closing, probes)
        for closing, number, positions, values in self._changes(probes):
            whole, rows = self.whole[closing.input], self._rows(closing, number)
            shape = (1, -1) + (1,) * (whole.ndim - 2)
            zeros = np.broadcast_to(closing.zeros, len(values))[positions].reshape(shape)
            closed = gated(whole[:, positions], values[positions].reshape(shape), zeros)
            moved(self.feeds[closing.input], closing)[rows, positions] = closed
        return self.feeds

    def open(self, probes: Sequence[Probe]) -> None:
        """Put back what these probes closed."""
        for closing, number, positions, _ in self._changes(probes):
            rows = self._rows(closing, number)
            moved(self.feeds[closing.input], closing)[rows, positions] = self.whole[closing.input][:, positions]

    def _changes(self, probes: Sequence[Probe]) -> Iterator[tuple[Closing, int, np.ndarray, np.ndarray]]:
        """For each probe and each tensor that is closed in what is fed: the positions that change, and the gates."""
        for closing in self.closings:
            for number, probe in enumerate(probes if closing.fed is not None else ()):
                values = closing.values(probe)
                yield closing, number, np.flatnonzero(values != 1), values

    def _rows(self, closing: Closing, number: int) -> slice:
        """Where the samples of a run's probe lie on the batch axis."""
        each = len(self.whole[closing.input])
        return slice(None) if self.repeats == 1 else slice(number * each, (number + 1) * each)

    def _gate(self, closing: Closing, probes: Sequence[Probe]) -> np.ndarray:
        """The numbers of a gate in the graph, as its tensor's shape wants them."""
        padded = [*probes, *[OPEN] * (self.repeats - len(probes))]
        values = np.stack([closing.values(probe) for probe in padded])
        shape = [1] * closing.rank
        shape[closing.axis] = values.shape[1]
        if self.repeats == 1 or closing.batch_axis is None:
            return values.reshape(shape)
        values = np.repeat(values, self.rows * closing.per_sample, axis=0)
        shape[closing.batch_axis] = len(values)
        return np.ascontiguousarray(values if closing.batch_axis < closing.axis else values.T).reshape(shape)


def gated(numbers: np.ndarray, gates: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """The numbers times their gates; of whole numbers the nearest, on the way to what stands for zero."""
    if numbers.dtype.kind == "f":
        return np.asarray(numbers * gates.astype(numbers.dtype))
    return np.asarray(np.rint(zeros + (numbers - zeros) * gates).astype(numbers.dtype))


class SinkOutput:
    """
    The output of an affine sink, off which the terms of closed channels are taken.

    `sink` runs the sink on some positions of its tensor, already gated, given these and their numbers. What it says of
    zeros is its bias alone, which is in the output and in the terms as well.
    """

    def __init__(
        self,
        taking: Taking,
        kept: Mapping[str, np.ndarray],
        repeats: int,
        sink: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        self._taking, self._repeats, self._sink = taking, repeats, sink
        self._batch_axis = taking.batch_axis or 0
        self.name = taking.output
        self._data = kept[taking.data]
        self._output = np.concatenate([kept[taking.output]] * repeats, axis=self._batch_axis)
        self._rows = np.moveaxis(self._output, self._batch_axis, 0)
        self._open = np.moveaxis(kept[taking.output], self._batch_axis, 0)
        first = np.array([0])
        bias = self._sink(np.zeros_like(np.take(self._data, first, taking.axis)), first)
        self._and_bias = self._open + np.moveaxis(bias, self._batch_axis, 0)

    def closed(self, probes: Sequence[Probe]) -> np.ndarray:
        """The output, for each probe without the terms of its closed channels."""
        each = len(self._open)
        for number in range(self._repeats):
            rows = self._rows[number * each : (number + 1) * each]
            probe = probes[number] if number < len(probes) else OPEN
            gates = gate_values(self._taking.channels, probe)
            positions = np.flatnonzero(gates != 1)
            if len(positions):
                terms = self._sink(self._closed_away(positions, gates), positions)
                np.subtract(self._and_bias, np.moveaxis(terms, self._batch_axis, 0), out=rows)
            else:
                rows[...] = self._open
        return self._output

    def _closed_away(self, positions: np.ndarray, gates: np.ndarray) -> np.ndarray:
        """What the gates take away from the tensor, at these positions alone."""
        shape = [1] * self._data.ndim
        shape[self._taking.axis] = len(positions)
        away = (1 - gates[positions]).astype(self._data.dtype).reshape(shape)
        return np.asarray(np.take(self._data, positions, self._taking.axis) * away)


def moved(array: np.ndarray, closing: Closing) -> np.ndarray:
    """A view `[batch, positions, ...]` of a tensor that is closed; a batch of one where there is none."""
    if closing.batch_axis is None:
        return np.moveaxis(array, closing.axis, 0)[None]
    return np.moveaxis(array, (closing.batch_axis, closing.axis), (0, 1))
