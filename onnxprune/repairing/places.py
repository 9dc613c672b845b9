"""Constants of a model where nodes read them, and how they get other numbers."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from onnxprune.reading.graph import fresh_name, names_in, read_by
from onnxprune.reading.numbers import numbers
from onnxprune.rewriting.editing import INITIALIZERS_ARE_NO_INPUTS, like


class Place:
    """Input number `index` of the node that makes `output`: a constant of the model, read there."""

    def __init__(self, model: ModelProto, output: str, index: int) -> None:
        self._model, self._index = model, index
        self.node: NodeProto = next(node for node in model.graph.node if output in node.output)
        self._tensor = tensor_named(model, self.name)

    @property
    def name(self) -> str:
        """The constant's name, as it is read now."""
        return self.node.input[self._index]

    @property
    def can_change(self) -> bool:
        """May the numbers change here and nowhere else?"""
        may_add = self._model.ir_version >= INITIALIZERS_ARE_NO_INPUTS
        return self._tensor is not None and (may_add or not self.is_shared)

    @property
    def is_shared(self) -> bool:
        """Is the constant read elsewhere too, or a model output?"""
        read = sum(list(read_by(node)).count(self.name) for node in self._model.graph.node)
        return read > 1 or any(port.name == self.name for port in self._model.graph.output)

    @property
    def array(self) -> np.ndarray:
        """The numbers."""
        assert self._tensor is not None
        return numbers(self._tensor)

    def put(self, array: np.ndarray) -> None:
        """Other numbers of the same shape and type; where others read the constant too, in a copy that is read here."""
        assert self._tensor is not None
        if not self.is_shared:
            self._tensor.CopyFrom(like(self._tensor, array, self._tensor.name))
            return
        graph = self._model.graph
        name = fresh_name(f"{self.name}.refitted", set(names_in(graph)))
        graph.initializer.append(like(self._tensor, array, name))
        self.node.input[self._index], self._tensor = name, graph.initializer[-1]


class Room:
    """An input that the node which makes `output` could have and has not: zeros, until other numbers are put there."""

    can_change, is_shared = True, False

    def __init__(self, model: ModelProto, output: str, index: int, zeros: np.ndarray) -> None:
        self._model, self._index, self.array = model, index, zeros
        self.node: NodeProto = next(node for node in model.graph.node if output in node.output)
        self.name = fresh_name(f"{output}.bias", set(names_in(model.graph)))

    @staticmethod
    def is_in(model: ModelProto) -> bool:
        """May constants be added to the model?"""
        return model.ir_version >= INITIALIZERS_ARE_NO_INPUTS

    def put(self, array: np.ndarray) -> None:
        """Let the node read these numbers there."""
        self._model.graph.initializer.append(numpy_helper.from_array(array, self.name))
        self.node.input.extend([""] * (self._index + 1 - len(self.node.input)))
        self.node.input[self._index] = self.name


def tensor_named(model: ModelProto, name: str) -> TensorProto | None:
    """The initializer, or the tensor in a Constant node, of that name; None if it is kept in another form."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return tensor
    for node in model.graph.node:
        if name in node.output:
            return next((one.t for one in node.attribute if one.name == "value" and one.HasField("t")), None)
    return None
