"""A model as ONNX's checker can take it: without the numbers that lie elsewhere."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnxprune.reading.graph import constant_tensor, standard
from onnxprune.reading.numbers import fits_whole, has_elsewhere, holding, is_elsewhere
from onnxprune.reading.observing import KEPT_ELEMENTS, with_numbers
from onnxprune.rewriting.editing import copy_fields

LONG = "ai.onnx"


def checkable(model: ModelProto) -> ModelProto:
    """
    The same graph, each weight whose numbers lie elsewhere an input of its type and shape; small ones as they are.

    A name that the graph lacks, and the standard's domain in its longer spelling, are of no interest either. The model
    itself where there is nothing of all that.
    """
    spelled = any(node.domain == LONG for node in model.graph.node)
    if model.graph.name and not spelled and not has_elsewhere(model) and fits_whole(model):
        return model
    made = ModelProto()
    copy_fields(model, made, skip={"graph"})
    copy_fields(model.graph, made.graph, skip={"node", "initializer"})
    made.graph.name = model.graph.name or "graph"
    declared = {port.name for port in model.graph.input}
    for tensor in model.graph.initializer:
        if (not is_elsewhere(tensor) and fits_whole(model)) or not is_left_out(tensor):
            made.graph.initializer.append(holding(tensor))
        elif tensor.name not in declared:
            made.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for node in model.graph.node:
        held = constant_tensor(node)
        if held is None or not is_left_out(held):
            made.graph.node.append(with_numbers(node))
            made.graph.node[-1].domain = standard(node.domain)
        else:
            made.graph.input.append(helper.make_tensor_value_info(node.output[0], held.data_type, held.dims))
    return made


def is_left_out(tensor: TensorProto) -> bool:
    """Is it a weight whose numbers tell no shape?"""
    return int(np.prod(tensor.dims, dtype=np.int64)) > KEPT_ELEMENTS
