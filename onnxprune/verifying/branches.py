"""A model that goes one way at every fork that data decide: a proof on some samples may see one way only."""

from __future__ import annotations

from collections.abc import Iterable, Set

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from onnxprune.reading.bodies import CONDITION, inventory, passings
from onnxprune.reading.names import bodies_of

DECIDED = "onnxprune.decided"


def forked(model: ModelProto, settled: Set[str]) -> bool:
    """Has the model nodes that run one of two bodies, by a condition that is not `settled`?"""
    nodes = inventory(model.graph).nodes
    return any(len(passings(node)) > 1 and node.inputs[CONDITION] not in settled for node in nodes)


def decided(model: ModelProto, way: bool, settled: Set[str]) -> ModelProto:
    """The model with every such node taking the first way, or the second."""
    made = ModelProto()
    made.CopyFrom(model)
    decide(made.graph.node, settled)
    made.graph.initializer.append(numpy_helper.from_array(np.array(way), DECIDED))
    return made


def decide(nodes: Iterable[NodeProto], settled: Set[str]) -> None:
    """Let a constant decide, in bodies too; what shapes alone decide is not for samples to change."""
    for node in nodes:
        bodies = list(bodies_of(node))
        if len(bodies) > 1 and node.input[CONDITION] not in settled:
            node.input[CONDITION] = DECIDED
        for body in bodies:
            decide(body.node, settled)
