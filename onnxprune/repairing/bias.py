"""The biases of layers: where they are added, and how they are moved."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, helper

from onnxprune.probing.calibration import Calibration
from onnxprune.reading.observing import session_for
from onnxprune.reading.subgraphs import up_to
from onnxprune.repairing.consumers import Consumer
from onnxprune.repairing.layers import bias_effect
from onnxprune.repairing.places import Place, Room
from onnxprune.repairing.rows import fed


@dataclass(frozen=True)
class Bias:
    """A layer's bias: an output grows by `effect` when its number in it grows by one. No `place`: it stays as it is."""

    place: Place | Room | None
    effect: float
    is_own: bool
    """Does the layer itself add it, so that it is part of the layer's output?"""

    @classmethod
    def of(cls, model: ModelProto, consumer: Consumer, samples: Calibration, outputs: int = 0) -> Bias | None:
        """
        The bias of a layer, tried on a few samples; None if it is the layer's own and does more than be added.

        A layer without one may get one for so many `outputs`, if it has room for that.
        """
        is_own = consumer.bias_node is consumer.node
        if consumer.bias is None:
            if not outputs or consumer.room is None or not Room.is_in(model):
                return cls(None, 0.0, is_own)
            zeros = np.zeros(outputs, helper.tensor_dtype_to_np_dtype(consumer.element_type))
            return cls(Room(model, consumer.output, consumer.room, zeros), 1.0, is_own)
        place = Place(model, consumer.bias_node.outputs[0], consumer.bias)
        read = {number: name for number, name in enumerate(place.node.input) if name and number != consumer.bias}
        session = session_for(up_to(model, list(read.values())), threads=1)
        feed = samples.at(samples.filled(next(samples.batches(2))))
        found = dict(zip(read, session.run(None, fed(session, feed)), strict=True))
        effect = bias_effect(place.node, model, consumer, found, place.array) if place.can_change else None
        if effect is None:
            return None if is_own else cls(None, 0.0, is_own)
        return cls(place, effect, is_own)

    @property
    def is_free(self) -> bool:
        """May it change?"""
        return self.place is not None

    def constant(self, outputs: int) -> np.ndarray:
        """What it adds to each of the layer's own outputs."""
        if self.place is None or not self.is_own:
            return np.zeros(outputs)
        return np.asarray(self.effect * self.place.array.ravel(), np.float64)

    def move(self, by: np.ndarray) -> None:
        """Let the outputs grow by so much."""
        if self.place is not None:
            self.place.put(self.moved(by))

    def moved(self, by: np.ndarray) -> np.ndarray:
        """Its numbers for outputs that are larger by so much."""
        assert self.place is not None
        bias = self.place.array
        return np.asarray((bias + (by / self.effect).reshape(bias.shape)).astype(bias.dtype))
