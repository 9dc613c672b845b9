"""
New weights for the layers that read one group, while every other group is whole.

With the readers' Gram matrices known, the weights for any kept channels follow without another look at the data. Width
curves are measured with them, so that a group is judged by what it costs after repair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.coupling.couple import Group
from onnxprune.repairing.cells import Stored
from onnxprune.repairing.consumers import Consumer
from onnxprune.repairing.gate_sums import GateSums
from onnxprune.repairing.layers import from_matrix
from onnxprune.repairing.places import Place
from onnxprune.repairing.readings import Readings


@dataclass(frozen=True)
class StandIns:
    """For a group and its kept channels: constants of the original with the numbers that make up best for the rest."""

    readings: Readings

    def __call__(self, group: Group, kept: np.ndarray) -> Mapping[str, np.ndarray]:
        """New numbers by the constants' names, in the shapes of the original."""
        gone = np.setdiff1d(np.arange(group.size), kept)
        found: dict[str, np.ndarray] = {}
        running: dict[str, list[tuple[GateSums, np.ndarray]]] = {}
        for reader in self.readings.readers(group):
            blocks = self.readings.blocks(group, reader)
            features = np.concatenate([blocks[channel] for channel in gone])
            if isinstance(reader, GateSums):
                running.setdefault(reader.output, []).append((reader, features))
            else:
                found |= self._of(reader, features)
        for readers in running.values():
            found |= self._running(readers)
        return found

    def _running(self, readers: Sequence[tuple[GateSums, np.ndarray]]) -> dict[str, np.ndarray]:
        """New numbers of a layer that runs along time, from all that it reads and the features of it that are gone."""
        layer = readers[0][0].layer
        stored = Stored(layer.couplings.graph.model, readers[0][0].output, layer.fact)
        if any(place.is_shared for place in stored.places):
            return {}
        directions = list(stored.directions())
        for reader, gone in readers:
            matrix = self.readings.of(reader).without(gone, constant_is_free=layer.fact.bias is not None)
            directions[reader.direction] = reader.put(matrix, directions[reader.direction])
        return dict(zip((place.name for place in stored.places), stored.arrays(directions), strict=True))

    def _of(self, reader: Consumer, gone: np.ndarray) -> dict[str, np.ndarray]:
        """New numbers of one layer without these features; none where its weight has other readers."""
        model = self.readings.couplings.graph.model
        weight = Place(model, reader.output, reader.weight)
        moments = self.readings.of(reader)
        bias = moments.bias
        if weight.is_shared or bias is None:
            return {}
        moves = bias.place is not None and not bias.place.is_shared
        matrix = moments.without(gone, constant_is_free=moves)
        found = {weight.name: from_matrix(matrix[:-1], weight.array, reader)}
        if moves:
            assert bias.place is not None
            found[bias.place.name] = bias.moved(matrix[-1])
        return found
