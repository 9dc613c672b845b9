"""The part of the graph that computes with shapes, run by itself on the old shapes and on the new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.reading.graph import Shape
from onnxprune.reading.observing import session_for
from onnxprune.rewriting.widths import Sizes
from onnxprune.rules.axes import leaves
from onnxprune.rules.facts import Measured


class ShapeGraph:
    """The part of the graph that computes with shapes, to be run on given shapes alone."""

    def __init__(self, sizes: Sizes, targets: Sequence[str]) -> None:
        self.sizes = sizes
        self.graph = sizes.graph
        self.needed: dict[str, None] = {}
        self.constants = {name for name in targets if name in self.graph.constants}
        self.sources: dict[str, Measured] = {}
        self._collect(targets)
        self._session = session_for(self._model(), optimized=False) if self.needed else None

    def _collect(self, targets: Sequence[str]) -> None:
        pending = [name for name in targets if name not in self.graph.constants]
        while pending:
            name = pending.pop()
            if name in self.needed:
                continue
            if name in self.graph.constants:
                self.constants.add(name)
                continue
            self.needed[name] = None
            if name in self.sizes.measured:
                self.sources[name] = self.sizes.measured[name]
            else:
                pending.extend(source for source in self.graph.makers[name].inputs if source)

    def _model(self) -> ModelProto:
        old = self.graph.model
        model = ModelProto(ir_version=max(old.ir_version, 4))
        model.opset_import.extend(old.opset_import)
        model.functions.extend(old.functions)
        model.graph.name = "shapes"
        makers = {self.graph.makers[name].position for name in self.needed if name not in self.sources}
        model.graph.node.extend(self.graph.protos[position] for position in sorted(makers))
        made = {name for position in makers for name in self.graph.protos[position].output}
        for name in sorted(self.constants - made):
            model.graph.initializer.append(numpy_helper.from_array(self.graph.constants[name].array(), name))
        for name, fact in self.sources.items():
            shape = [len(fact.sizes)] if fact.output.rank else []
            model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
        for name in self.needed:
            if name in self.sources:
                model.graph.node.append(helper.make_node("Identity", [name], [f"{name}.measured"]))
            suffix = ".measured" if name in self.sources else ""
            model.graph.output.append(ValueInfoProto(name=name + suffix))
        return model

    def run(self, shapes: Mapping[str, Shape], *, new: bool) -> dict[str, np.ndarray]:
        """Numbers of the targets and of all they come from, for the old shapes or for the new ones."""
        values = {name: self.graph.constants[name].array() for name in self.constants}
        if self._session is None:
            return values
        feeds = {name: self._measure(name, fact, shapes, new=new) for name, fact in self.sources.items()}
        return values | dict(zip(self.needed, self._session.run(None, feeds), strict=True))

    def _measure(self, name: str, fact: Measured, shapes: Mapping[str, Shape], *, new: bool) -> np.ndarray:
        """The widths that a measuring node reports."""
        maker = self.graph.makers[name]
        op = self.sizes.couplings.typing.stated[maker.position].op
        source = op.input(0)
        size_of = dict(zip(source.axes, shapes[source.name], strict=True))
        numbers = []
        for axis in fact.sizes:
            old = int(np.prod([size_of[dim] for dim in leaves(axis)], dtype=np.int64))
            numbers.append(int(old * self.sizes.factor(axis)) if new else old)
        return np.array(numbers, np.int64).reshape(fact.output.shape)
