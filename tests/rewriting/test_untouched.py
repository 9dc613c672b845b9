"""What pruning does not touch stays byte for byte."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.coupling.couple import Couplings, couple
from onnxprune.reading.read import read
from onnxprune.rewriting.editing import Draft
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rewriting.zeroing import zeroed
from onnxprune.rules.axes import Dim
from tests.models import build
from tests.oracle import (
    assert_removal_equals_zeroing,
    assert_same_outputs,
    coupled,
    feeds_of,
)

TEXT = """
    other = Conv(x[N,3,4,4], w0[5,3,1,1], b0[5])
    a = Conv(x, w1[8,3,1,1], b1[8])
    b = Relu(a)
    c = Reshape(b, s{0,-1})
    y = Gemm<transB=1>(c, w2[3,128], b2[3])
    y2 = ReduceMean(other)
"""


def decorated() -> ModelProto:
    """A model with everything that an exporter may write beside the graph."""
    model = onnx.shape_inference.infer_shapes(build(TEXT))
    model.producer_name, model.producer_version, model.domain, model.model_version = "exporter", "1.2", "org.here", 7
    model.doc_string, model.graph.doc_string, model.graph.name = "a model", "a graph", "main"
    model.opset_import.append(helper.make_opsetid("org.here", 3))
    for place in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.value_info):
        place.metadata_props.add(key="note", value=f"of {getattr(place, 'name', 'the model')}")
    for place in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        place.doc_string = f"doc of {place.name}"
    model.graph.quantization_annotation.add(tensor_name="a")
    return model


def selection(couplings: Couplings) -> dict[Dim, np.ndarray]:
    """Three channels of the group "a" stay."""
    return couplings.group("a").per_dim(np.array([1, 2, 5]))


def test_an_empty_selection_changes_nothing() -> None:
    """Byte for byte, for removal and for zeroing."""
    model = decorated()
    couplings = coupled(model)
    assert rewrite_kept(couplings, {}).SerializeToString() == model.SerializeToString()
    assert zeroed(couplings, {}).SerializeToString() == model.SerializeToString()


def test_keeping_every_channel_changes_nothing() -> None:
    """A selection of all channels is as good as none."""
    model = decorated()
    couplings = coupled(model)
    everything = couplings.group("a").per_dim(np.arange(8))
    assert rewrite_kept(couplings, everything).SerializeToString() == model.SerializeToString()


def test_what_the_model_says_about_itself_survives() -> None:
    """Producer, version, domain, operator sets, doc strings and metadata, of the model and of the graph."""
    model = decorated()
    couplings = coupled(model)
    pruned = rewrite_kept(couplings, selection(couplings))
    for one, other in ((model, pruned), (model.graph, pruned.graph)):
        for field, value in one.ListFields():
            if field.name not in ("graph", "node", "initializer", "value_info"):
                assert getattr(other, field.name) == value


def test_nodes_that_are_not_touched_survive() -> None:
    """Each node is the same, in the same order, with name, doc string and metadata."""
    model = decorated()
    couplings = coupled(model)
    assert list(rewrite_kept(couplings, selection(couplings)).graph.node) == list(model.graph.node)


def test_constants_that_are_not_touched_survive() -> None:
    """Only those that lose channels differ, and they keep names, order, doc strings and metadata."""
    model = decorated()
    couplings = coupled(model)
    pruned = rewrite_kept(couplings, selection(couplings))
    touched = {place.tensor for place in couplings.group("a").slices}
    assert touched == {"w1", "b1", "w2"}
    for one, other in zip(model.graph.initializer, pruned.graph.initializer, strict=True):
        assert (one == other) == (one.name not in touched)
        assert (one.name, one.doc_string, one.metadata_props) == (other.name, other.doc_string, other.metadata_props)


def test_recorded_shapes_are_updated() -> None:
    """Sizes that change are rewritten, dynamic ones and metadata stay."""
    model = decorated()
    couplings = coupled(model)
    pruned = rewrite_kept(couplings, selection(couplings))
    recorded = {info.name: info for info in pruned.graph.value_info}
    assert [dim.dim_value or dim.dim_param for dim in recorded["b"].type.tensor_type.shape.dim] == ["N", 3, 4, 4]
    assert [dim.dim_value or dim.dim_param for dim in recorded["c"].type.tensor_type.shape.dim] == ["N", 48]
    assert recorded["b"].metadata_props[0].value == "of b"
    assert recorded["other"] == next(info for info in model.graph.value_info if info.name == "other")


def test_the_original_is_not_edited() -> None:
    """Neither pruning nor zeroing changes the model that was read."""
    model = decorated()
    before = model.SerializeToString()
    couplings = coupled(model)
    rewrite_kept(couplings, selection(couplings))
    zeroed(couplings, selection(couplings))
    assert model.SerializeToString() == before


def test_pruning_twice_equals_pruning_once_with_both() -> None:
    """First some channels and then some of the rest: bit for bit as if at once."""
    model = decorated()
    couplings = coupled(model)
    first, second = np.array([0, 1, 3, 4, 6]), np.array([1, 2, 4])
    halfway = rewrite_kept(couplings, couplings.group("a").per_dim(first))
    again = coupled(halfway)
    twice = rewrite_kept(again, again.group("a").per_dim(second))
    assert twice == rewrite_kept(couplings, couplings.group("a").per_dim(first[second]))


def test_two_groups_one_after_the_other_equal_both_at_once() -> None:
    """Groups do not get into each other's way."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = Conv(a, w2[6,8,1,1])
        c = Concat<axis=1>(a, b)
        y = Conv(c, w3[4,14,1,1])
    """)
    couplings = coupled(model)
    first = coupled(rewrite_kept(couplings, couplings.group("a").per_dim(np.array([0, 3, 4]))))
    both = {name: couplings.group(name).per_dim(np.array([0, 3, 4])) for name in ("a", "b")}
    second = rewrite_kept(first, first.group("b").per_dim(np.array([0, 3, 4])))
    assert second == rewrite_kept(couplings, both["a"] | both["b"])


def as_old_ir(model: ModelProto) -> ModelProto:
    """The model as before IR version 4: every initializer is an input as well."""
    old = ModelProto()
    old.CopyFrom(model)
    old.ir_version = 3
    old.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in model.graph.initializer
    )
    return old


def test_initializers_among_the_inputs() -> None:
    """In IR version 3 the input that declares a weight shrinks with it, and a new constant becomes a node."""
    model = as_old_ir(build(TEXT.replace("(other)", "<axes=[1]>(other)"), opset=8))
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8}, inexact={"other": 5})
    pruned = rewrite_kept(couplings, selection(couplings))
    declared = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in pruned.graph.input}
    assert declared["w1"] == [3, 3, 1, 1]
    assert {tensor.name for tensor in pruned.graph.initializer} <= declared.keys()


def test_a_shared_constant_that_is_split_in_an_old_ir() -> None:
    """The second form of a shared bias is a Constant node where initializers would have to be inputs."""
    model = as_old_ir(
        build(
            """
        a = Conv(x[N,3,4,4], w1[8,3,1,1], b[8])
        c = Conv(a, w2[8,8,1,1], b)
        y = Conv(c, w3[4,8,1,1])
    """,
            opset=8,
        )
    )
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8, "c": 8})
    assert "Constant" in {node.op_type for node in rewrite_kept(couplings, selection(couplings)).graph.node}


def with_constant_nodes(model: ModelProto) -> ModelProto:
    """The model with every weight held by a Constant node."""
    changed = ModelProto()
    changed.CopyFrom(model)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor, name=f"make_{tensor.name}")
        for tensor in model.graph.initializer
    ]
    nodes.extend(model.graph.node)
    del changed.graph.initializer[:], changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed


def test_weights_in_constant_nodes() -> None:
    """They are sliced where they are, and the nodes keep their names."""
    model = with_constant_nodes(build(TEXT))
    couplings = assert_removal_equals_zeroing(model)
    pruned = rewrite_kept(couplings, selection(couplings))
    assert not pruned.graph.initializer
    assert [node.name for node in pruned.graph.node] == [node.name for node in model.graph.node]
    assert list(pruned.graph.node[2].attribute[0].t.dims) == [3, 3, 1, 1]


@pytest.mark.parametrize(
    ("data_type", "number"), [(TensorProto.FLOAT16, 10), (TensorProto.DOUBLE, 11), (TensorProto.BFLOAT16, 16)]
)
def test_weights_of_other_types(data_type: int, number: int) -> None:
    """Halves, doubles and brain floats are sliced in their own type."""
    model = build("w = Cast<to=1>(w1[5,8])\n a = MatMul(x[N,5], w)\n y = MatMul(a, w2[8,3])")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w1")
    numbers = numpy_helper.to_array(weight).astype(helper.tensor_dtype_to_np_dtype(data_type))
    weight.CopyFrom(numpy_helper.from_array(numbers, "w1"))
    assert weight.data_type == number
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8})
    pruned = rewrite_kept(couplings, selection(couplings))
    assert [tensor.data_type for tensor in pruned.graph.initializer if tensor.name == "w1"] == [data_type]


def test_weights_on_disk(tmp_path: object) -> None:
    """External data are read where they lie, relative to the model's file."""
    path = tmp_path / "model.onnx"
    onnx.save(build(TEXT), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    couplings, inside = couple(read(path)), coupled(build(TEXT))
    pruned = rewrite_kept(couplings, selection(couplings))
    assert_same_outputs(pruned, rewrite_kept(inside, selection(inside)), feeds_of(inside.graph, 0))


def test_a_constant_that_nobody_reads_survives() -> None:
    """What was loose in the original stays."""
    model = build(TEXT)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "loose"))
    couplings = coupled(model)
    assert "loose" in {tensor.name for tensor in rewrite_kept(couplings, selection(couplings)).graph.initializer}


def test_new_names_do_not_collide() -> None:
    """A name that the rewriter would give and that is taken gets a number."""
    model = build("""
        a = Conv(x[N,3,4,4], w1[8,3,1,1], b[8])
        c = Conv(a, w2[8,8,1,1], b)
        y = Conv(c, w3[4,8,1,1])
    """)
    for node in model.graph.node:
        if node.output[0] == "a":
            node.output[0] = "b.2"
        node.input[:] = ["b.2" if name == "a" else name for name in node.input]
    couplings = assert_removal_equals_zeroing(model, groups={"a": 8, "c": 8})
    pruned = rewrite_kept(couplings, selection(couplings))
    assert {"b", "b.2.2"} <= {tensor.name for tensor in pruned.graph.initializer}


def test_a_new_node_is_not_named_like_an_old_one() -> None:
    """New names collide with those of nodes no more than with those of tensors."""
    model = build(TEXT)
    model.graph.node[0].name = "first"
    draft = Draft(read(model))
    assert [draft.fresh(name) for name in ("first", "a", "new", "new")] == ["first.2", "a.2", "new", "new.2"]
