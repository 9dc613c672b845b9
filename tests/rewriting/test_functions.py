"""Local functions are pruned use by use, and stay functions where their uses agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune import prune
from onnxprune.reading.read import read
from onnxprune.rewriting.outlining import outlined
from onnxprune.rewriting.rewrite import rewrite_kept
from tests.models import distinct
from tests.oracle import assert_removal_equals_zeroing, coupled, random_selection, run

DENSE = """
<domain: "local", opset_import: ["": 18]>
dense (a, w, b) => (c) { m = MatMul(a, w) s = Add(m, b) c = Relu(s) }
"""


def model_of(nodes: str, functions: str, **weights: tuple[int, ...]) -> ModelProto:
    """A model of these nodes, functions and weights; x [N, 4] goes in, y comes out."""
    head = '<ir_version: 9, opset_import: ["": 18, "local": 1]> test (float[N,4] x) => (float[N,3] y)'
    model = onnx.parser.parse_model(f"{head} {{ {nodes} }} {functions}")
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(distinct(name, shape).astype(np.float32), name))
    return model


def pruned(model: ModelProto, seed: int = 0) -> ModelProto:
    """Random channels of every group gone, the functions put together again."""
    couplings = coupled(model)
    kept = random_selection(couplings.groups, np.random.default_rng(seed))
    inlining = read(model).inlining
    assert inlining is not None
    plain = rewrite_kept(couplings, kept)
    again = outlined(plain, inlining).model
    feeds = {"x": np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)}
    np.testing.assert_array_equal(run(again, feeds)[0], run(plain, feeds)[0])
    onnx.checker.check_model(again, full_check=True)
    return again


TWO_LAYERS = "h = local.dense(x, w1, b1) g = local.dense(h, w2, b2) y = MatMul(g, w3)"
WEIGHTS = {"w1": (4, 8), "b1": (8,), "w2": (8, 6), "b2": (6,), "w3": (6, 3)}


def test_channels_are_followed_through_functions() -> None:
    """A function's nodes say what they say anywhere."""
    couplings = assert_removal_equals_zeroing(model_of(TWO_LAYERS, DENSE, **WEIGHTS))
    assert sorted(group.size for group in couplings.groups) == [6, 8]


def test_a_function_without_widths_stays_as_it_was() -> None:
    """Weights come in from outside: the calls are those of the file, and so is the function, byte for byte."""
    model = model_of(TWO_LAYERS, DENSE, **WEIGHTS)
    again = pruned(model)
    assert list(again.graph.node) == list(model.graph.node)
    assert list(again.functions) == list(model.functions)
    assert list(again.opset_import) == list(model.opset_import)


HEADS = """
<domain: "local", opset_import: ["": 18]>
halves (a, w) => (c) {
    m = MatMul(a, w)
    k = Constant<value = int64[3] {0, 2, 4}>()
    c = Reshape(m, k)
}
"""
FLAT = "d = Constant<value = int64[2] {0, 8}>() y1 = Reshape(h, d) g = Relu(y1) y = MatMul(g, w3)"


def test_a_function_whose_only_use_changes_is_a_function_with_new_numbers() -> None:
    """The widths in its constants are the new ones."""
    model = model_of(f"h = local.halves(x, w1) {FLAT}", HEADS, w1=(4, 8), w3=(8, 3))
    again = pruned(model)
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in model.graph.node]
    assert again.functions[0] != model.functions[0]


def test_uses_that_differ_give_way_to_nodes() -> None:
    """Two uses of other widths have no function in common."""
    nodes = "e = local.halves(x, w0) z = Constant<value = int64[2] {0, 8}>() f = Reshape(e, z)"
    nodes += f" h = local.halves(f, w1) {FLAT}"
    model = model_of(nodes, HEADS, w0=(4, 8), w1=(8, 8), w3=(8, 3))
    again = next(found for seed in range(20) if not (found := pruned(model, seed)).functions)
    assert all(node.domain == "" for node in again.graph.node)


NESTED = """
<domain: "local", opset_import: ["": 18, "local": 1]>
pair (a, w, b, v, d) => (c) { h = local.dense(a, w, b) c = local.dense(h, v, d) }
"""


def test_functions_in_functions() -> None:
    """Calls within calls are taken apart and put together again."""
    nodes = "g = local.pair(x, w1, b1, w2, b2) y = MatMul(g, w3)"
    model = model_of(nodes, NESTED + DENSE, **WEIGHTS)
    assert_removal_equals_zeroing(model, groups=[6, 8])
    again = pruned(model)
    assert list(again.functions) == list(model.functions)
    assert list(again.graph.node) == list(model.graph.node)


SCALED = """
<domain: "local", opset_import: ["": 18]>
leaky <alpha: float = 0.2, axis> (a) => (c) {
    l = LeakyRelu<alpha: float = @alpha>(a)
    c = Softmax<axis: int = @axis>(l)
}
"""


def test_attributes_of_a_call() -> None:
    """What a call says of its attributes, and what the function says where it does not."""
    nodes = "h = MatMul(x, w1) g = Relu(h) m = MatMul(g, w3) n = local.leaky<axis=1>(m)"
    nodes += " y = local.leaky<alpha=0.5, axis=0>(n)"
    model = model_of(nodes, SCALED, w1=(4, 8), w3=(8, 3))
    assert_removal_equals_zeroing(model, groups=[8])
    assert list(pruned(model).functions) == list(model.functions)


@pytest.mark.parametrize("functions", [DENSE, DENSE.replace('"": 18', '"": 13')])
def test_the_report_says_which_functions_are_kept(functions: str) -> None:
    """A function of another opset than the model's is left alone, with all that it touches."""
    model = model_of(TWO_LAYERS, functions, **WEIGHTS)
    if functions == DENSE:
        result = prune(model, criterion="magnitude", ratio=0.3)
        assert "Local functions kept: dense." in result.report.notes
        assert any(check.name.startswith("functions") and check.passed for check in result.report.verdict.checks)
        assert len(result.model.functions) == 1
    else:
        assert not coupled(model).groups
