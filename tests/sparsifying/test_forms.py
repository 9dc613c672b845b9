"""Zeros in the file: sparse form, what they are worth, and the proof that they are there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.coupling.couple import couple
from onnxprune.probing.calibration import gather
from onnxprune.reading.observing import session_for
from onnxprune.reading.read import read
from onnxprune.reading.sparse import dense_form
from onnxprune.repairing.places import tensor_named
from onnxprune.sparsifying import sparse_form
from onnxprune.sparsifying.checking import check_sparsity
from onnxprune.sparsifying.sparse_form import as_sparse
from onnxprune.sparsifying.sparsify import Sparsified, sparsify
from onnxprune.sparsifying.weighing import weights_report
from tests.bundled import bundled, digits
from tests.models import build

DENSE = "h = Gemm(x[N,30], w1[30,40], b1[40])\n a = Relu(h)\n y = Gemm(a, w2[40,5], b2[5])"


def thinned(wanted: str = "90%") -> tuple[ModelProto, Sparsified]:
    """A model, and the same with zeros."""
    couplings = couple(read(build(DENSE)))
    return couplings.graph.model, sparsify(couplings, gather(couplings.graph, None), wanted, criterion="magnitude")


@pytest.mark.parametrize("name", ["mlp_torch", "resnet_torchscript", "vit_torchscript"])
def test_a_sparse_file_runs_to_the_same_outputs(name: str) -> None:
    """It is smaller, valid, and the same bits come out."""
    couplings = bundled(name)
    made = sparsify(couplings, gather(couplings.graph, digits(name, 8)), "90%", criterion="magnitude", refit=False)
    sparse = as_sparse(made.model)
    assert len(sparse.graph.sparse_initializer) > 0
    assert sparse.ByteSize() < 0.6 * made.model.ByteSize()
    onnx.checker.check_model(sparse)
    feed = {port.name: digits(name, 8)[port.name] for port in couplings.graph.inputs}
    outputs = [session_for(model).run(None, feed)[0] for model in (made.model, sparse)]
    np.testing.assert_array_equal(*outputs)


def test_sparse_form_keeps_the_numbers() -> None:
    """And leaves dense what is smaller so: at half of zeros nothing changes."""
    _, made = thinned()
    sparse = as_sparse(made.model)
    for one in sparse.graph.sparse_initializer:
        np.testing.assert_array_equal(dense_form(one), numpy_helper.to_array(tensor_named(made.model, one.values.name)))
    _, half = thinned("50%")
    assert as_sparse(half.model) == half.model


def test_float64_and_float16_too() -> None:
    """Whatever ONNX Runtime does with the type: the file runs."""
    for kind in ("double", "float16"):
        model = build(f"y = MatMul({kind} x[N,40], {kind} w[40,30])")
        tensor = model.graph.initializer[0]
        numbers = np.array(numpy_helper.to_array(tensor))
        numbers[:, 2:] = 0
        tensor.CopyFrom(numpy_helper.from_array(numbers, "w"))
        sparse = as_sparse(model)
        feed = {"x": np.ones((2, 40), numbers.dtype)}
        np.testing.assert_array_equal(*(session_for(one).run(None, feed)[0] for one in (model, sparse)))


def test_what_onnx_runtime_refuses_stays_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor at a time."""
    _, made = thinned("97%")
    monkeypatch.setattr(
        sparse_form,
        "loads",
        lambda model: all(one.values.name != "w1" for one in model.graph.sparse_initializer),
    )
    assert [one.values.name for one in as_sparse(made.model).graph.sparse_initializer] == ["w2"]


def test_zeros_are_reported_apart() -> None:
    """By weight and in all, with the bytes of both forms, and alike for a file that is sparse already."""
    _, made = thinned()
    report = weights_report(made.model)
    assert {weight.name: weight.size for weight in report.weights} == {"w1": 1200, "w2": 200}
    assert report.zeros == sum(layer.zeros for layer in made.layers) == 1260
    assert report.bytes_dense == made.model.ByteSize()
    assert report.bytes_sparse == as_sparse(made.model).ByteSize() < report.bytes_dense
    again = weights_report(as_sparse(made.model))
    assert (again.zeros, again.bytes_sparse) == (report.zeros, report.bytes_sparse)
    assert again.bytes_dense == pytest.approx(report.bytes_dense, abs=100)


def test_the_check_finds_a_zero_that_is_missing() -> None:
    """One number where a zero was promised."""
    before, made = thinned()
    tensor = tensor_named(made.model, "w1")
    assert tensor is not None
    numbers = np.array(numpy_helper.to_array(tensor))
    numbers[numbers == 0] = 1
    tensor.CopyFrom(numpy_helper.from_array(numbers, "w1"))
    found = check_sparsity(before, made.model, made.layers, made.constants)
    assert not found.passed
    assert "'w1' has 0 zeros" in found.detail


def test_the_check_finds_other_changes_and_patterns() -> None:
    """A bias that nothing is said of; a pattern that other zeros do not make."""
    before, made = thinned()
    touched = ModelProto()
    touched.CopyFrom(made.model)
    bias = tensor_named(touched, "b2")
    assert bias is not None
    bias.CopyFrom(numpy_helper.from_array(np.array(numpy_helper.to_array(bias)) + 1, "b2"))
    assert "'b2' differs" in check_sparsity(before, touched, made.layers, made.constants).detail
    strict = [replace(layer, pattern=(1, 16)) for layer in made.layers]
    assert "blocks hold more than 1 of 16" in check_sparsity(before, made.model, strict, made.constants).detail


def test_a_weight_that_is_gone_is_said() -> None:
    """Not a crash."""
    before, made = thinned()
    gone = [replace(made.layers[0], weight="w9")]
    assert "'w9' is missing" in check_sparsity(before, made.model, gone, made.constants).detail
