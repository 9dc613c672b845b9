"""The proof of every run: a good model passes, and one that was tampered with fails the right check."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.choosing.choose import choose
from onnxprune.choosing.plan import Plan, plan_of
from onnxprune.choosing.targets import Targets
from onnxprune.coupling.couple import couple
from onnxprune.errors import PlanError
from onnxprune.probing.proxies import magnitudes
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite
from onnxprune.verifying.equality import rounding_alone
from onnxprune.verifying.verify import Verdict, verify
from tests.bundled import MODELS, bundled, digits
from tests.models import build

VALID, LOADS, INTERFACE = "valid ONNX", "loads in ONNX Runtime", "interface unchanged"
BATCH, EQUAL = "second batch size", "equals the zeroed original"
SIZES, BRANCHES = "equals it at other sizes", "equals it in every branch"


@cache
def halved(name: str) -> Plan:
    """The weaker half of every group goes."""
    couplings = bundled(name)
    exact = [group for group in couplings.groups if group.exact]
    return choose(couplings, magnitudes(couplings, exact), Targets(ratio=0.5))


def pruned(name: str) -> ModelProto:
    return rewrite(bundled(name), halved(name))


def verdict_on(model: ModelProto, name: str = "mlp_torch") -> Verdict:
    return verify(bundled(name), halved(name), model, digits(name, 32))


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_model_passes_every_check(name: str) -> None:
    """All checks hold, with and without data, and the difference is far below the limit."""
    for data in (digits(name, 32), None):
        verdict = verify(bundled(name), halved(name), pruned(name), data)
        assert [check.name for check in verdict.checks] == [VALID, INTERFACE, LOADS, BATCH, EQUAL, SIZES]
        assert verdict.passed
        assert verdict.failures == ()
        assert verdict.difference < 1e-5
        assert verdict.samples == 32


def test_the_original_is_not_its_pruned_self() -> None:
    """A model from which nothing was removed does not equal the one with zeros."""
    assert failed(verdict_on(bundled("mlp_torch").graph.model)) == [EQUAL]


ANY_LENGTH = """
a = MatMul(x[N,T,4], w1[4,8])
b = Reshape(a, s0{0,-1,8})
y = MatMul(b, w2[8,3])
"""
ANY_BRANCH = """
a = MatMul(x[N,4], w1[4,8])
s = ReduceSum<keepdims=0>(x)
c = Less(s, low[]{-1000000.0})
b = If(c) <
    then_branch = one () => (float[N,8] p) { p = Mul(a, s1[8]) },
    else_branch = two () => (float[N,8] q) { q = Neg(a) }>
y = MatMul(b, w2[8,3])
"""


def test_sizes_that_the_samples_do_not_have_are_checked() -> None:
    """A length that is written down where it was dynamic is found out."""
    couplings = couple(read(build(ANY_LENGTH)))
    plan = choose(couplings, magnitudes(couplings, couplings.groups), Targets(ratio=0.5))
    model = rewrite(couplings, plan)
    assert verify(couplings, plan, model).passed
    written = numpy_helper.to_array(weight(model, "s0")).copy()
    written[1] = couplings.graph.input_shapes["x"][1]
    weight(model, "s0").CopyFrom(numpy_helper.from_array(written, "s0"))
    assert failed(verify(couplings, plan, model)) == [SIZES]


def test_branches_that_the_samples_do_not_take_are_checked() -> None:
    """A mistake in a branch is found out although no sample leads there."""
    couplings = couple(read(build(ANY_BRANCH)))
    plan = choose(couplings, magnitudes(couplings, couplings.groups), Targets(ratio=0.5))
    model = rewrite(couplings, plan)
    assert verify(couplings, plan, model).passed
    changed(weight(model, "s1"), lambda array: array + 1)
    assert failed(verify(couplings, plan, model)) == [BRANCHES]


def test_a_branch_that_shapes_rule_out_need_not_agree() -> None:
    """Where the shapes alone decide, no sample leads to the other branch, whatever its widths."""
    model = build(
        """
        a = MatMul(x[N,1,4], w1[4,8])
        n = Shape<start=1, end=2>(a)
        c = Equal(n, one{1})
        b = If(c) <
            then_branch = first () => (float[N,8] p) { p = Squeeze(a, ax{1}) },
            else_branch = second () => (float[N,8] q) { d = Squeeze(x, ax2{1}) q = MatMul(d, w3[4,8]) }>
        y = MatMul(b, w2[8,3])
        """
    )
    couplings = couple(read(model))
    plan = choose(couplings, magnitudes(couplings, couplings.groups), Targets(ratio=0.5))
    assert verify(couplings, plan, rewrite(couplings, plan)).passed


def weight(model: ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def changed(tensor: TensorProto, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor.CopyFrom(
        numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor).copy())), tensor.name)
    )


def one_weight(model: ModelProto) -> None:
    def bumped(array: np.ndarray) -> np.ndarray:
        array[3, 400] += 0.5
        return array

    changed(weight(model, "hidden.weight"), bumped)


def wrong_slice(model: ModelProto) -> None:
    changed(weight(model, "output.weight"), lambda array: np.roll(array, 1, axis=1))


def renamed_output(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "scores"


def renamed_input(model: ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"


def fixed_batch(model: ModelProto) -> None:
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 4


def other_type(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["cast"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "cast"


def dropped_metadata(model: ModelProto) -> None:
    del model.metadata_props[:]


def dropped_producer(model: ModelProto) -> None:
    model.producer_name = ""


def other_opset(model: ModelProto) -> None:
    model.opset_import[0].version += 1


def one_more_output(model: ModelProto) -> None:
    model.graph.output.append(onnx.ValueInfoProto(name=model.graph.node[0].output[0]))


def no_such_operator(model: ModelProto) -> None:
    model.graph.node[2].op_type = "Relux"


def sizes_that_clash(model: ModelProto) -> None:
    changed(weight(model, "output.weight"), lambda array: array[:, :-1])


@pytest.mark.parametrize(
    ("tamper", "checks", "detail"),
    [
        (one_weight, [EQUAL], "output 'probabilities' differs by"),
        (wrong_slice, [EQUAL], "output 'probabilities' differs by"),
        (renamed_output, [INTERFACE, EQUAL], "the outputs differ"),
        (one_more_output, [VALID, INTERFACE], "the outputs differ"),
        (renamed_input, [INTERFACE, BATCH, EQUAL], "the inputs differ"),
        (fixed_batch, [INTERFACE, BATCH, EQUAL], "the inputs differ; the outputs differ"),
        (other_type, [INTERFACE, BATCH, EQUAL], "the inputs differ"),
        (dropped_metadata, [INTERFACE], "metadata_props differs"),
        (dropped_producer, [INTERFACE], "producer_name differs"),
        (other_opset, [INTERFACE], "opset_import differs"),
        (no_such_operator, [VALID, LOADS], "Relux"),
        (sizes_that_clash, [VALID, LOADS], "Gemm"),
    ],
)
def test_what_was_tampered_with_fails_the_right_check(
    tamper: Callable[[ModelProto], None], checks: list[str], detail: str
) -> None:
    """The failing checks are named, and the first says what differs."""
    model, couplings = with_metadata(pruned("mlp_torch")), couple(read(with_metadata(bundled("mlp_torch").graph.model)))
    plan = plan_of(couplings, {group.name: np.array(group.kept) for group in halved("mlp_torch").groups})
    tamper(model)
    verdict = verify(couplings, plan, model, digits("mlp_torch", 32))
    assert not verdict.passed
    assert failed(verdict) == checks
    assert detail in " ".join(verdict.failures)


def with_metadata(model: ModelProto) -> ModelProto:
    """The same model with metadata."""
    copy = ModelProto()
    copy.CopyFrom(model)
    helper.set_model_props(copy, {"author": "me"})
    return copy


def test_a_difference_in_a_single_sample_fails() -> None:
    """The float64 arbiter looks at all samples, not at the first alone."""
    couplings = couple(read(build("a = Gemm(x[N,4], w1[4,6])\n b = Relu(a)\n y = Gemm(b, w2[6,3])")))
    plan = plan_of(couplings, {"a": np.arange(3)})
    model = rewrite(couplings, plan)
    changed(weight(model, "w1"), lambda array: array + np.eye(4)[:, 3:].astype(np.float32))
    samples = np.zeros((32, 4), np.float32)
    samples[:, 0] = 1
    samples[20, 3] = 1
    assert failed(verify(couplings, plan, model, samples)) == [EQUAL]


def zero_but_for_rounding(order: str, by: str) -> ModelProto:
    """Numbers less themselves, added up in this order with others, and something that is added at the end."""
    return build(f"""
        a = Gemm(x[N,4], w1[4,6])
        b = Neg(a)
        c = Concat<axis=1>({order})
        d = ReduceSum<keepdims=1>(c, axes{{1}})
        e = Tanh(a)
        f = Add(d, e)
        g = Sub(f, e)
        h = Gemm(g, w2[6,3])
        y = Add(h, float by{{{by}}})
    """)


@pytest.mark.parametrize(("by", "is_rounding"), [("0.0", True), ("0.000001", False)])
def test_an_output_that_is_zero_but_for_rounding_is_measured_in_float64(by: str, is_rounding: bool) -> None:
    """There is no number to hold a difference against, but rounding shrinks with the precision; other things do not."""
    feeds = {"x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)}
    one, other = zero_but_for_rounding("b, a", "0.0"), zero_but_for_rounding("a, b", by)
    assert (rounding_alone(one, other, feeds) is not None) == is_rounding


def test_an_original_that_the_checker_refuses_is_no_reproach() -> None:
    """What is wrong with the original already does not count against the pruned model."""
    model = build("a = Gemm(x[N,4], w1[4,6])\n b = Relu(a)\n y = Gemm(b, w2[6,3])")
    model.graph.node[0].name = model.graph.node[1].name = ""
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    couplings = couple(read(model))
    plan = plan_of(couplings, {"a": np.arange(3)})
    verdict = verify(couplings, plan, rewrite(couplings, plan))
    assert verdict.checks[0].passed
    assert verdict.checks[0].detail.startswith("the original is not valid either: ")


def test_a_plan_for_another_model_is_refused() -> None:
    """Verification by another model's plan proves nothing."""
    with pytest.raises(PlanError, match="Plan does not fit this model: it was made for a file with sha256"):
        verify(bundled("mlp_keras"), halved("mlp_torch"), pruned("mlp_torch"))


def test_the_verdict_is_json() -> None:
    """Programs read the checks and the numbers."""
    verdict = json.loads(verdict_on(pruned("mlp_torch")).to_json())
    assert [check["name"] for check in verdict["checks"]] == [VALID, INTERFACE, LOADS, BATCH, EQUAL, SIZES]
    assert verdict["difference"] < 1e-5
    assert verdict["samples"] == 32
