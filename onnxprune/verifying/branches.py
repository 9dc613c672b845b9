"""A model that goes one way at every fork, whatever decides: a proof on some samples may see one way only."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from onnxprune.reading.bodies import CONDITION, inventory, passings
from onnxprune.reading.names import bodies_of

DECIDED = "onnxprune.decided"


def forked(model: ModelProto) -> bool:
    """Has the model nodes that run one of two bodies?"""
    return any(len(passings(node)) > 1 for node in inventory(model.graph).nodes)


def decided(model: ModelProto, way: bool) -> ModelProto:
    """The model with every such node taking the first way, or the second."""
    made = ModelProto()
    made.CopyFrom(model)
    decide(made.graph.node)
    made.graph.initializer.append(numpy_helper.from_array(np.array(way), DECIDED))
    return made


def decide(nodes: Iterable[NodeProto]) -> None:
    """Let a constant decide, in bodies too."""
    for node in nodes:
        bodies = list(bodies_of(node))
        if len(bodies) > 1:
            node.input[CONDITION] = DECIDED
        for body in bodies:
            decide(body.node)
