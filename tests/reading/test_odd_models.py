"""Models that exporters and editors leave behind: each is pruned, proven and valid, and says of itself what it said."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import ModelError, UsageError
from onnxprune.job import PruneResult
from onnxprune.reading.read import read
from tests.models import build

TEXT = """
    a = Conv<pads=[1,1,1,1]>(x[N,3,6,6], w1[8,3,3,3], b1[8])
    b = Relu(a)
    c = Conv(b, w2[6,8,1,1])
    d = Flatten(c)
    y = Gemm<transB=1>(d, w3[5,216], b3[5])
"""


def pruned(model: ModelProto) -> PruneResult:
    """Half the channels gone; both groups lose some, and ONNX's checker has nothing to say against the result."""
    result = onnxprune.prune(model, ratio=0.5, criterion="magnitude")
    assert result.report.verdict.passed
    assert {group.name: len(group.kept) for group in result.plan.groups} == {"a": 4, "c": 3}
    assert onnx.numpy_helper.to_array(tensors(result.model)["w1"]).shape == (4, 3, 3, 3)
    return result


def tensors(model: ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def recorded(model: ModelProto) -> dict[str, list[int | str]]:
    """The recorded shapes."""
    return {
        info.name: [dim.dim_value or dim.dim_param for dim in info.type.tensor_type.shape.dim]
        for info in model.graph.value_info
    }


@pytest.mark.parametrize(
    ("element_type", "shape"),
    [(TensorProto.FLOAT, ["N", 7, 6, 6]), (TensorProto.FLOAT, ["N", 7]), (TensorProto.INT64, ["N", 8, 6, 6])],
    ids=["size", "rank", "type"],
)
def test_untrue_records_do_not_survive(element_type: int, shape: list[int | str]) -> None:
    """What an exporter left of older shapes is inferred anew, and the report says so."""
    model = build(TEXT)
    model.graph.value_info.append(helper.make_tensor_value_info("b", element_type, shape))
    result = pruned(model)
    assert recorded(result.model) == {"b": ["N", 4, 6, 6]}
    assert any("inferred anew: 'b'" in note for note in result.report.notes)
    onnx.checker.check_model(result.model, full_check=True)


def test_a_batch_recorded_as_one_is_not_true() -> None:
    """A model that takes any batch has no tensor of one sample inside."""
    model = build(TEXT)
    model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 8, 6, 6]))
    assert recorded(pruned(model).model) == {"b": ["N", 4, 6, 6]}


def test_true_records_get_the_new_sizes() -> None:
    """Denotations and names of dimensions stay; nothing is noted."""
    model = onnx.shape_inference.infer_shapes(build(TEXT))
    info = next(info for info in model.graph.value_info if info.name == "b")
    info.type.denotation = "TENSOR"
    info.type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    model.graph.input[0].type.denotation = "IMAGE"
    result = pruned(model)
    assert recorded(result.model) == {"a": ["N", 4, 6, 6], "b": ["N", 4, 6, 6], "c": ["N", 3, 6, 6], "d": ["N", 108]}
    again = next(info for info in result.model.graph.value_info if info.name == "b")
    assert (again.type.denotation, again.type.tensor_type.shape.dim[1].denotation) == ("TENSOR", "DATA_CHANNEL")
    assert result.model.graph.input[0] == model.graph.input[0]
    assert not result.couplings.graph.notes


def test_nodes_in_any_order_are_sorted_and_that_is_said() -> None:
    """The output has them in an order that ONNX allows."""
    model = build(TEXT)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    result = pruned(model)
    assert [node.name for node in result.model.graph.node] == ["a", "b", "c", "d", "y"]
    assert "Nodes stood before others that make what they read: they were sorted." in result.report.notes
    onnx.checker.check_model(result.model, full_check=True)


def test_a_circle_is_refused() -> None:
    """No order suits it."""
    model = build(TEXT)
    model.graph.node[0].input[0] = "c"
    with pytest.raises(ModelError, match="node 'a' needs what it helps to make"):
        read(model)


def test_nodes_of_one_name_are_told_apart() -> None:
    """ONNX Runtime would refuse them."""
    model = build(TEXT)
    for node in model.graph.node:
        node.name = "same"
    result = onnxprune.prune(model, ratio=0.5, criterion="magnitude")
    assert [node.name for node in result.model.graph.node] == ["same", "same#2", "same#3", "same#4", "same#5"]
    assert any("renamed" in note for note in result.report.notes)


@pytest.mark.parametrize("version", range(3, onnx.IR_VERSION + 1))
def test_every_ir_version(version: int) -> None:
    """From that in which initializers are inputs too, whose declared shapes follow, to the newest."""
    model = build(TEXT, opset=9 if version < 8 else 13)
    model.ir_version = version
    declared = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    model.graph.input.extend(declared if version == 3 else [])
    result = pruned(model)
    assert result.model.ir_version == version
    found = {port.name: [d.dim_value for d in port.type.tensor_type.shape.dim] for port in result.model.graph.input[1:]}
    assert found == ({name: list(t.dims) for name, t in tensors(result.model).items()} if version == 3 else {})


def set_names(model: ModelProto, names: dict[str, str]) -> None:
    """Rename tensors, and nodes with them."""
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for entries in (model.graph.initializer, model.graph.input, model.graph.output):
        for entry in entries:
            entry.name = names.get(entry.name, entry.name)


def test_odd_names_survive() -> None:
    """Slashes, dots, colons, spaces, brackets, quotes, percent signs, and letters of other scripts."""
    model = build(TEXT)
    names = {"b": "/b/b.c:0 [0]", "w1": "w 1/ü%s:.x", "w2": "::{w2}'\"", "x": "in put/é", "y": "out%put"}
    set_names(model, names)
    result = pruned_any(model)
    assert result.model.graph.input[0].name == "in put/é"
    assert [list(node.output) for node in result.model.graph.node] == [list(node.output) for node in model.graph.node]


def pruned_any(model: ModelProto) -> PruneResult:
    result = onnxprune.prune(model, ratio=0.5, criterion="magnitude")
    assert result.report.verdict.passed
    assert result.plan.removed
    return result


def no_node_names(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = ""


def no_graph_name(model: ModelProto) -> None:
    model.graph.name = ""


def domain_spelled_out(model: ModelProto) -> None:
    for entry in (*model.opset_import, *model.graph.node):
        entry.domain = "ai.onnx" if not entry.domain else entry.domain


def loose_ends(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "loose"))
    model.graph.node.append(helper.make_node("Relu", ["b"], ["dead"], name="dead"))


def input_is_output(model: ModelProto) -> None:
    model.graph.output.append(model.graph.input[0])


def constant_is_output(model: ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("b3", TensorProto.FLOAT, [5]))


def training(model: ModelProto) -> None:
    info = model.training_info.add()
    info.initialization.name, info.algorithm.name = "start", "step"
    info.algorithm.node.append(helper.make_node("Identity", ["w1"], ["w1.new"]))
    for bindings in (info.update_binding, info.initialization_binding):
        bindings.add(key="w1", value="w1.new")


def annotations(model: ModelProto) -> None:
    annotation = model.graph.quantization_annotation.add(tensor_name="a")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b3")
    for place in (model, model.graph, *model.graph.node, *model.graph.initializer):
        place.metadata_props.add(key="note", value="kept")


@pytest.mark.parametrize(
    "edit",
    [
        no_node_names,
        no_graph_name,
        domain_spelled_out,
        loose_ends,
        input_is_output,
        constant_is_output,
        training,
        annotations,
    ],
    ids=lambda edit: edit.__name__,
)
def test_everything_else_stays(edit: Callable[[ModelProto], None]) -> None:
    """But for sliced weights the output is the input: nodes, names, texts and whatever hangs on them."""
    model = build(TEXT)
    edit(model)
    result = pruned(model) if edit is not no_node_names else pruned_any(model)
    assert "the original is not valid either" not in result.report.verdict.to_json()
    assert list(result.model.graph.node) == list(model.graph.node)
    for one, other in ((model, result.model), (model.graph, result.model.graph)):
        for field, value in one.ListFields():
            if field.name not in ("graph", "initializer"):
                assert getattr(other, field.name) == value
    assert [tensor.name for tensor in result.model.graph.initializer] == list(tensors(model))


def test_sparse_weights_are_pruned() -> None:
    """They come out dense."""
    model = build(TEXT)
    tensor = tensors(model)["w2"]
    numbers = numpy_helper.to_array(tensor).copy()
    numbers.ravel()[::2] = 0
    places = np.flatnonzero(numbers).astype(np.int64)
    values = numpy_helper.from_array(numbers.ravel()[places], "w2")
    model.graph.initializer.remove(tensor)
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(places), dims=numbers.shape)
    )
    assert tensors(pruned(model).model)["w2"].dims == [3, 4, 1, 1]


def test_a_batch_that_only_runs_at_four() -> None:
    """Declared as dynamic, and fixed by a Reshape inside."""
    model = build("a = Conv(x[N,3,4,4], w1[8,3,1,1])\n b = Reshape(a, s{4,128})\n y = Gemm(b, w2[128,5])")
    assert read(model).input_shapes == {"x": (4, 3, 4, 4)}
    assert pruned_any(model).report.verdict.passed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"ratio": "a"}, "Expected ratio to be a number, found 'a'."),
        ({"macs": [1]}, "Expected macs to be a number or text such as '50%', found [1]."),
        ({"seed": 1.5}, "Expected seed to be an integer, found 1.5."),
        ({"compensate": "no"}, "Expected compensate to be True or False, found 'no'."),
        ({"only": 5}, "Expected only to be a glob or several, found 5."),
        ({"scores": 5}, "Expected scores to be scores or their file, found 5."),
    ],
)
def test_arguments_of_another_kind_are_refused(options: dict[str, object], complaint: str) -> None:
    """With what they can be."""
    with pytest.raises(UsageError) as refusal:
        onnxprune.prune(build(TEXT), **options)  # type: ignore[arg-type]
    assert str(refusal.value) == complaint


def test_models_data_and_plans_of_another_kind_are_refused() -> None:
    """Likewise."""
    with pytest.raises(UsageError, match="Expected a model as path, bytes or ModelProto, found None"):
        onnxprune.prune(None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Expected data as a file, arrays or an iterable of feeds, found 5"):
        onnxprune.prune(build(TEXT), 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Expected a Plan, found 'plan\.json'"):
        onnxprune.apply(build(TEXT), "plan.json")  # type: ignore[arg-type]


def test_a_name_that_no_group_has_is_refused() -> None:
    """With those that there are."""
    result = pruned(build(TEXT))
    with pytest.raises(UsageError, match=r"Expected the name of a group \('a', 'c'\), found 'z'"):
        result.couplings.group("z")
    assert result.scores is not None
    with pytest.raises(UsageError, match=r"group with scores \('a', 'c'\), found 'z'"):
        result.scores.of("z")
