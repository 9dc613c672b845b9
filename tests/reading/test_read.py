"""Reading a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.reading.read import read
from tests.models import build

TEXT = """
    a = Conv(x[N,3,4,4], w1[8,3,1,1])
    b = Flatten(a)
    y = MatMul(b, w2[128,3])
"""


def test_a_model_is_read_from_anywhere(tmp_path: Path) -> None:
    """A path, a path as text, bytes and a ModelProto give the same graph."""
    model = build(TEXT)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    graphs = [read(source) for source in (path, str(path), path.read_bytes(), model)]
    assert len({graph.sha256 for graph in graphs}) == 1
    assert all(graph.nodes == graphs[0].nodes and graph.shapes == graphs[0].shapes for graph in graphs)
    assert [graph.path for graph in graphs] == [path, path, None, None]


def test_shapes_of_all_tensors_are_known() -> None:
    """At a batch of two where the batch is dynamic."""
    graph = read(build(TEXT))
    computed = {"x": (2, 3, 4, 4), "a": (2, 8, 4, 4), "b": (2, 128), "y": (2, 3)}
    assert graph.shapes == computed | {"w1": (8, 3, 1, 1), "w2": (128, 3)}
    assert graph.has_batch


def test_dynamic_sizes_are_distinct() -> None:
    """Each dynamic name gets a size of its own, one name the same size everywhere."""
    graph = read(build("y = Concat<axis=2>(x[N,S,T], x2[N,S,3])"))
    assert graph.input_shapes == {"x": (2, 7, 11), "x2": (2, 7, 3)}


def test_sizes_may_be_given() -> None:
    """Sizes other than the batch are taken from the caller where the model leaves them open."""
    graph = read(build("y = Relu(x[N,S,4])"), input_shapes={"x": (9, 5, 4)})
    assert graph.input_shapes == {"x": (2, 5, 4)}


def test_sizes_that_suit_the_model_are_found() -> None:
    """A network that halves its input four times and joins a skip does not run at every size."""
    graph = read(
        build("""
        a = MaxPool<kernel_shape=[8,8], strides=[8,8]>(x[N,3,H,W])
        b = Resize(a, , s{1.0,1.0,8.0,8.0})
        y = Add(b, x)
        """)
    )
    assert graph.input_shapes == {"x": (2, 3, 8, 8)}


def test_numbers_of_shape_arithmetic_are_known() -> None:
    """Small integer tensors are remembered with their numbers."""
    graph = read(build("all = Shape(x[N,3,4])\n flat = Concat<axis=0>(all, one{1})\n y = Reshape(x, flat)"))
    assert graph.values["flat"].tolist() == [2, 3, 4, 1]


def test_a_batch_that_is_hard_coded_is_found() -> None:
    """A file may declare a dynamic batch and reshape to one sample all the same."""
    graph = read(build("a = Gemm(x[N,6], w[6,8])\n b = Reshape(a, s{1,8})\n y = Gemm(b, v[8,3])"))
    assert graph.input_shapes == {"x": (1, 6)}


def test_a_name_has_one_size_wherever_it_stands() -> None:
    """The batch of one input may be the second axis of another."""
    graph = read(build("n = Cast<to=1>(int32 xl[B])\n m = Unsqueeze(n, ax{1})\n y = Add(x[S,B,5], m)"))
    assert graph.input_shapes["x"][1] == graph.input_shapes["xl"][0]


def test_nodes_without_names_get_some() -> None:
    """Made up from the operator and its first output, and unique."""
    model = build(TEXT)
    for node in model.graph.node:
        node.name = ""
    model.graph.node[1].name = "Conv:a"
    assert [node.name for node in read(model).nodes] == ["Conv:a", "Conv:a#2", "MatMul:y"]


def test_constants_of_every_kind() -> None:
    """Initializers, and Constant nodes in each way of writing their value."""
    graph = read(
        build(
            """
        c1 = Constant<value_float=2.0>()
        c2 = Constant<value_ints=[-1,2]>()
        c3 = Constant<value: tensor = float[2] {1.0, 2.0}>()
        a = Mul(x[N,2], c1)
        b = Add(a, c3)
        y = Reshape(b, c2)
        """.replace("[1,2]", "[-1,2]")
        )
    )
    numbers = {name: constant.array().tolist() for name, constant in graph.constants.items()}
    assert numbers == {"c1": 2.0, "c2": [-1, 2], "c3": [1.0, 2.0]}


def test_external_data_are_read_from_beside_the_model(tmp_path: Path) -> None:
    """The graph knows the shape at once, and the numbers when asked."""
    path = tmp_path / "model.onnx"
    onnx.save(build(TEXT), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    graph, inside = read(path), read(build(TEXT))
    assert np.array_equal(graph.constants["w2"].array(), inside.constants["w2"].array())
    assert graph.file_bytes == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size


def test_outer_tensors_of_a_body_are_known() -> None:
    """What a branch reads by name counts as read by its node."""
    graph = read(
        build("""
        a = Relu(x[2,3])
        flag = Cast<to=9>(one[]{1})
        y = If<then_branch = one () => (float[2,3] p) { p = Neg(a) },
               else_branch = two () => (float[2,3] q) { q = Add(a, a) }>(flag)
        """)
    )
    assert graph.captured == {"a"}
    assert graph.main[-1].has_body


def test_a_missing_file() -> None:
    """The message says what was expected, what was found, and what to do."""
    with pytest.raises(ModelError) as failure:
        read("nowhere/model.onnx")
    assert str(failure.value) == ("Expected an ONNX file at 'nowhere/model.onnx', found nothing there. Check the path.")


def test_another_kind_of_file(tmp_path: Path) -> None:
    """Bytes that are no model are refused, and so is a model without nodes."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="found something else"):
        read(path)
    with pytest.raises(ModelError, match=r"Expected an ONNX model in the bytes given, found no nodes in it."):
        read(b"")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """What cannot be read says why."""
    with pytest.raises(ModelError, match=r"Expected a readable ONNX file at .*: Is a directory. Check the path."):
        read(tmp_path)


def test_a_model_that_does_not_run() -> None:
    """The message has what ONNX Runtime says, and what to do."""
    model = build("y = Relu(x[N,3])")
    model.graph.node.append(helper.make_node("Strange", ["y"], ["z"], domain="org.strange"))
    model.opset_import.append(helper.make_opsetid("org.strange", 1))
    with pytest.raises(ModelError, match="does not run in ONNX Runtime at any input size tried"):
        read(model)


def test_an_input_that_is_no_tensor() -> None:
    """Sequences cannot be fed."""
    model = build("y = Relu(x[N,3])")
    element = helper.make_tensor_type_proto(1, [2])
    model.graph.input.append(helper.make_value_info("xs", helper.make_sequence_type_proto(element)))
    with pytest.raises(ModelError, match="Expected tensors as inputs, found input 'xs' of another kind"):
        read(model)


@pytest.mark.parametrize("by_axis", [False, True])
def test_sparse_weights_are_read_as_dense_ones(by_axis: bool) -> None:
    """Wherever their places are counted; the model given keeps them as they are."""
    model = build("h = Gemm(x[N,4], w1[4,6])\n a = Relu(h)\n y = Gemm(a, w2[6,3])")
    dense = read(model)
    tensor = next(one for one in model.graph.initializer if one.name == "w1")
    numbers = np.array(numpy_helper.to_array(tensor))
    places = np.argwhere(numbers) if by_axis else np.flatnonzero(numbers)
    values = numpy_helper.from_array(numbers[numbers != 0], "w1")
    sparse = onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(places), dims=tensor.dims)
    model.graph.initializer.remove(tensor)
    model.graph.sparse_initializer.append(sparse)
    found = read(model)
    assert len(model.graph.sparse_initializer) == 1
    assert found.constants.keys() == dense.constants.keys()
    np.testing.assert_array_equal(found.constants["w1"].array(), dense.constants["w1"].array())
