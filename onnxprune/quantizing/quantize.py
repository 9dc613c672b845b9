"""
Eight bits for weights and activations, the ranges measured on calibration data.

The work is ONNX Runtime's (`onnxruntime.quantization`); here it gets the project's samples, keeps silent, leaves no
file behind, and what it makes keeps the model's inputs, outputs and texts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import ModelProto
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxprune.errors import DataError, ModelError
from onnxprune.probing.calibration import Calibration, first_line
from onnxprune.quantizing.quiet import quiet
from onnxprune.reading.numbers import whole
from onnxprune.reading.observing import session_for
from onnxprune.rewriting.editing import copy_fields
from onnxprune.verifying.check import Check

CALIBRATION_SAMPLES = 512
"""Samples that ranges are measured on, the first ones."""

BATCH = 16

Layout = Literal["qdq", "operators"]
"""How eight bits are written down: pairs of nodes around float operators, or operators of their own."""

LAYOUTS = {"qdq": quantization.QuantFormat.QDQ, "operators": quantization.QuantFormat.QOperator}

TEXTS = {"producer_name", "producer_version", "domain", "model_version", "doc_string", "metadata_props"}

PREPARATIONS: tuple[Mapping[str, bool], ...] = (
    {},
    {"skip_symbolic_shape": True},
    {"skip_symbolic_shape": True, "skip_optimization": True},
)
"""Ways to infer shapes and fuse nodes before, the best first: not every model, nor every installation, has them all."""


class Feeds:
    """Calibration samples as ONNX Runtime's quantizer reads them: feed by feed, None at the end."""

    def __init__(self, calibration: Calibration) -> None:
        self._feeds = (calibration.at(calibration.filled(batch)) for batch in calibration.batches(BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next feed."""
        return next(self._feeds, None)


def quantize(
    model: ModelProto,
    calibration: Calibration,
    *,
    per_channel: bool = True,
    reduce_range: bool = False,
    layout: Layout = "qdq",
) -> ModelProto:
    """
    The model in eight bits: same inputs and outputs, weights and activations as int8 where ONNX Runtime can have them.

    Args:
        model: float; it is not changed. What the quantizer has no eight-bit form of stays float.
        calibration: real samples; the ranges of activations are those seen on the first 512.
        per_channel: a scale for each output channel of a weight, not one for all.
        reduce_range: seven bits for weights, for processors whose eight-bit sums saturate (x86 without VNNI).
        layout: "qdq" (portable) or "operators".

    Raises:
        DataError: the samples are made up.
        ModelError: ONNX Runtime cannot quantise the model.
    """
    if calibration.synthetic:
        raise DataError(
            "Expected calibration data to quantise with, found none: ranges of made-up inputs say nothing about real "
            "ones. Pass data with --data."
        )
    try:
        with tempfile.TemporaryDirectory(prefix="onnxprune.") as folder, quiet():
            made = Path(folder) / "quantised.onnx"
            quantization.quantize_static(
                prepared(model, Path(folder)),
                made,
                Feeds(calibration.first(CALIBRATION_SAMPLES)),
                quant_format=LAYOUTS[layout],
                per_channel=per_channel,
                reduce_range=reduce_range,
            )
            quantized = onnx.load(made)
        session_for(quantized)
    except Exception as failure:  # the quantizer raises many kinds
        raise ModelError(
            f"Expected a model that ONNX Runtime can quantise, found one that it gives up on: {first_line(failure)} "
            "Leave out --quantize, or quantise the model with onnxruntime.quantization and options of your own."
        ) from failure
    return with_texts_of(model, quantized)


def prepared(model: ModelProto, folder: Path) -> Path:
    """A file in the folder with the model, shapes inferred and nodes fused as far as that works."""
    plain, path = folder / "model.onnx", folder / "prepared.onnx"
    onnx.save(whole(model), plain)  # the quantizer is given files: it edits a ModelProto in place
    for options in PREPARATIONS:
        try:
            quant_pre_process(plain, path, **options)
            session_for(str(path))
            return path
        except Exception:  # optional libraries that are missing, operators without inference: the next way asks less
            continue
    return plain


def with_texts_of(model: ModelProto, quantized: ModelProto) -> ModelProto:
    """The quantised model with inputs, outputs and texts as the original has them, and the operator sets it uses."""
    kept = ModelProto()
    copy_fields(quantized, kept, skip=TEXTS | {"opset_import", "graph"})
    copy_fields(model, kept, skip=set(ModelProto.DESCRIPTOR.fields_by_name) - TEXTS)
    used = {node.domain for node in quantized.graph.node} | {
        node.domain for one in quantized.functions for node in one.node
    }
    kept.opset_import.extend(entry for entry in quantized.opset_import if not entry.domain or entry.domain in used)
    copy_fields(quantized.graph, kept.graph, skip={"input", "output"})
    weights = {tensor.name for tensor in model.graph.initializer}
    kept.graph.input.extend(port for port in model.graph.input if port.name not in weights)
    kept.graph.output.extend(model.graph.output)
    return kept


def check_quantized(before: ModelProto, after: ModelProto) -> Check:
    """Does the quantised model load, with the inputs and outputs of the one before?"""
    name = "quantised model keeps its interface"
    try:
        ports = [
            [(port.name, port.type) for port in (*session.get_inputs(), *session.get_outputs())]
            for session in (session_for(before), session_for(after))
        ]
    except ModelError as failure:
        return Check(name, False, first_line(failure))
    return Check(name, ports[0] == ports[1], f"{ports[1]}" if ports[0] != ports[1] else "names, types; it loads")
