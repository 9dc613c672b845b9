"""Models that were quantised before: pruned as they are, on the command's defaults and without data."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization import QuantFormat, QuantType

from onnxprune.errors import UsageError
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import gather
from onnxprune.quantizing.quantize import Feeds
from onnxprune.quantizing.quiet import quiet
from tests.bundled import MODELS, bundled, digits, model_path

SAMPLES = 32
WAYS: dict[str, dict[str, object]] = {
    "pairs, one scale": {"quant_format": QuantFormat.QDQ},
    "pairs, a scale for each channel": {"quant_format": QuantFormat.QDQ, "per_channel": True},
    "pairs, unsigned": {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QUInt8,
    },
    "operators, one scale": {"quant_format": QuantFormat.QOperator},
    "operators, a scale for each channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
}
AS_IT_RUNS = {"as it runs": False, "as it runs, a scale for each channel": True}
FEW = ("mlp_torch", "lstm_torch", "resnet_torchscript")
"""Models of which a default run prunes each form; the others take longer."""


def quantized(name: str, way: str) -> ModelProto:
    """A bundled model as ONNX Runtime quantises it in that way; an optimised one has its operators fused as well."""
    with TemporaryDirectory() as folder, quiet():
        logging.getLogger().setLevel(logging.ERROR)
        made = Path(folder) / "made.onnx"
        way, _, optimized = way.partition(" / ")
        if way in AS_IT_RUNS:
            quantization.quantize_dynamic(model_path(name), made, per_channel=AS_IT_RUNS[way])
        else:
            feeds = Feeds(gather(bundled(name).graph, digits(name, SAMPLES)))
            quantization.quantize_static(model_path(name), made, feeds, **WAYS[way])
        return fused(made) if optimized else onnx.load(made)


def fused(path: Path) -> ModelProto:
    """What ONNX Runtime makes of the model for a processor of any kind."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path.with_name("fused.onnx"))
    ort.InferenceSession(str(path), options)
    return onnx.load(options.optimized_model_filepath)


EVERY_WAY = (*WAYS, *AS_IT_RUNS, "pairs, a scale for each channel / fused", "as it runs / fused")
CASES = [
    pytest.param(name, way, marks=() if name in FEW else pytest.mark.slow)
    for name in MODELS
    if name != "mlp_sklearn"  # its scikit-learn operators are more than ONNX Runtime's quantizer understands
    for way in EVERY_WAY
]


@cache
def pruned_size(name: str) -> float:
    """The share of the parameters that the float model keeps at the same ratio."""
    report = prune(model_path(name), criterion="magnitude", ratio=0.3).report
    return report.pruned.params / report.original.params


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_quantised_model_loses_what_the_float_one_loses(name: str, way: str) -> None:
    """It passes its verification, and as large a share of its parameters goes."""
    report = prune(quantized(name, way), criterion="magnitude", ratio=0.3).report
    assert report.verdict.passed
    assert report.pruned.params / report.original.params < pruned_size(name) + 0.02


@pytest.mark.parametrize("way", EVERY_WAY)
def test_probes_order_the_channels_of_a_quantised_model(way: str) -> None:
    """With data, what matters is measured on the quantised model itself: nearly all answers stay."""
    result = prune(quantized("mlp_torch", way), digits("mlp_torch", 256), macs="60%", jobs=1)
    before, after = result.report.original.accuracy, result.report.pruned.accuracy
    assert before is not None
    assert after is not None
    assert after > before - 0.05
    assert any("quantised weights" in note and "keep their numbers" in note for note in result.report.notes)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", FEW)
def test_weights_of_sixteen_bits_stay_so(name: str, kind: int) -> None:
    """Weights that are stored in half and computed with in full are sliced as they are stored."""
    model = stored_in(kind, onnx.load(model_path(name)))
    result = prune(model, criterion="magnitude", ratio=0.3)
    assert result.report.pruned.params / result.report.original.params < pruned_size(name) + 0.02
    stored = {tensor.name: tensor.data_type for tensor in result.model.graph.initializer}
    assert stored == {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def stored_in(kind: int, model: ModelProto) -> ModelProto:
    """The model with every matrix and kernel in that type, and a Cast behind it."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            name, numbers = tensor.name, numpy_helper.to_array(tensor)
            half = numbers.astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.stored"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
    return model


def test_what_is_quantised_is_not_quantised_again() -> None:
    """Said before anything is measured."""
    model = quantized("mlp_torch", "pairs, one scale")
    with pytest.raises(UsageError, match="Expected a float model to quantise, found 4 quantised weights"):
        prune(model, digits("mlp_torch", SAMPLES), macs="60%", quantize="int8")


def test_criteria_that_look_into_float_layers_say_so() -> None:
    """Where no layer sums in floats, they have nothing to go by."""
    model = quantized("mlp_torch", "operators, one scale")
    report = prune(model, digits("mlp_torch", SAMPLES), macs="60%", criterion="activation").report
    assert any("Criterion activation tells no channels apart" in note for note in report.notes)
