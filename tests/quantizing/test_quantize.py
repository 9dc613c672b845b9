"""Eight bits: the model runs, answers as before, and keeps its interface; nothing is printed or left behind."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from onnxprune.coupling.couple import couple
from onnxprune.errors import DataError, ModelError
from onnxprune.pipeline import prune
from onnxprune.probing.calibration import gather
from onnxprune.quantizing import quantize as module
from onnxprune.quantizing.quantize import Layout, check_quantized, quantize
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from tests.bundled import FIXTURES, bundled, digits, model_path
from tests.models import build

SAMPLES = 32
TWO_INPUTS = "a = MatMul(x1[N,8], w1[8,6])\n b = MatMul(x2[N,5], w2[5,6])\n c = Add(a, b)\n y = Relu(c)"


def accuracy(model: ModelProto, count: int = 500) -> float:
    """On the test digits."""
    with np.load(FIXTURES / "digits" / "test.npz") as archive:
        arrays = {name: archive[name][:count] for name in archive.files}
    labels = arrays.pop("labels")
    return float((session_for(model).run(None, arrays)[0].argmax(1) == labels).mean())


def random_feeds(count: int = 32) -> dict[str, np.ndarray]:
    """For the model of two inputs."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((count, size)).astype(np.float32) for name, size in (("x1", 8), ("x2", 5))}


@pytest.mark.parametrize("name", ["mlp_torch", "resnet_torchscript", "vit_torchscript", "lstm_torch"])
def test_answers_stay(name: str) -> None:
    """Accuracy on digits that no range was measured on stays within a point and a half, and the file never grows."""
    couplings = bundled(name)
    model = couplings.graph.model
    before = model.SerializeToString()
    quantized = quantize(model, gather(couplings.graph, digits(name, SAMPLES)))
    assert accuracy(quantized) > accuracy(model) - 0.015
    assert quantized.ByteSize() <= model.ByteSize()
    assert check_quantized(model, quantized).passed
    assert model.SerializeToString() == before


def test_weights_are_bytes() -> None:
    """A network of matrix products is stored in a third of its bytes at most."""
    couplings = bundled("mlp_torch")
    quantized = quantize(couplings.graph.model, gather(couplings.graph, digits("mlp_torch", SAMPLES)))
    assert quantized.ByteSize() < couplings.graph.file_bytes / 3
    assert any(tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2 for tensor in quantized.graph.initializer)


@pytest.mark.parametrize("name", ["mlp_torch", pytest.param("resnet_torchscript", marks=pytest.mark.slow)])
def test_a_pruned_model_can_be_quantised(name: str) -> None:
    """Half of the MACs gone, then eight bits: both steps keep the answers."""
    result = prune(model_path(name), digits(name, 200), macs="50%", criterion="magnitude", compensate=True)
    calibration = gather(couple(read(result.model)).graph, digits(name, 200))
    quantized = quantize(result.model, calibration)
    assert accuracy(quantized) > accuracy(result.model) - 0.015
    assert quantized.ByteSize() < 0.6 * result.model.ByteSize()


@pytest.mark.parametrize("layout", ["qdq", "operators"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_models_of_several_inputs_and_any_batch(layout: Layout, per_channel: bool) -> None:
    """Every input is fed, and another number of samples runs."""
    couplings = couple(read(build(TWO_INPUTS)))
    feeds = random_feeds()
    calibration = gather(couplings.graph, feeds)
    quantized = quantize(couplings.graph.model, calibration, layout=layout, per_channel=per_channel)
    (wanted,), (found,) = (session_for(model).run(None, feeds) for model in (couplings.graph.model, quantized))
    np.testing.assert_allclose(found, wanted, atol=0.05 * np.abs(wanted).max())
    few = {name: array[:3] for name, array in feeds.items()}
    assert session_for(quantized).run(None, few)[0].shape == (3, 6)


def test_texts_stay() -> None:
    """Metadata, doc string and version are the original's."""
    model = build(TWO_INPUTS)
    model.doc_string, model.model_version, model.producer_name = "what it is for", 7, "me"
    model.metadata_props.add(key="author", value="someone")
    quantized = quantize(model, gather(couple(read(model)).graph, random_feeds()))
    for name in ("doc_string", "model_version", "producer_name", "metadata_props"):
        assert getattr(quantized, name) == getattr(model, name)


def test_nothing_is_printed_or_left_behind(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No file stays in the folder of temporary files, and logging is as it was."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handlers = list(logging.getLogger().handlers)
    couplings = couple(read(build(TWO_INPUTS)))
    quantize(couplings.graph.model, gather(couplings.graph, random_feeds()))
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger().handlers == handlers


def test_made_up_samples_are_refused() -> None:
    """Ranges of random inputs would be wrong without a word."""
    couplings = bundled("mlp_torch")
    with pytest.raises(DataError, match=r"found none: .* Pass data with --data"):
        quantize(couplings.graph.model, gather(couplings.graph, None))


def test_what_the_quantizer_gives_up_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its own words, and what to do."""

    def give_up(*_: object, **__: object) -> None:
        raise ValueError("no scale for tensor 'a'")

    monkeypatch.setattr(module.quantization, "quantize_static", give_up)
    couplings = couple(read(build(TWO_INPUTS)))
    with pytest.raises(ModelError, match=r"gives up on: no scale for tensor 'a' Leave out --quantize"):
        quantize(couplings.graph.model, gather(couplings.graph, random_feeds()))


def test_a_model_with_another_interface_is_found() -> None:
    """An output of another name fails the check."""
    model, other = build(TWO_INPUTS), build(TWO_INPUTS.replace("y =", "y2 ="))
    assert not check_quantized(model, other).passed
