"""What ONNX Runtime makes one node of: `com.microsoft`."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from onnxprune.reading.read import read
from onnxprune.repairing.consumers import consumers
from tests.bundled import FIXTURES
from tests.models import build
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, coupled, reasons


@pytest.mark.parametrize(
    ("activation", "silent"),
    [
        ("", True),
        ('activation="Relu"', True),
        ('activation="Tanh"', True),
        ('activation="LeakyRelu", activation_params=[0.1]', True),
        ('activation="Clip", activation_params=[0.0,6.0]', True),
        ('activation="Clip", activation_params=[0.5,6.0]', False),
        ('activation="Sigmoid"', False),
        ('activation="HardSigmoid", activation_params=[0.2,0.5]', False),
    ],
)
@pytest.mark.parametrize("inputs", ["a, w2[8,6,1,1], b2[8]", "a, w2[8,6,1,1], b2[8], z", "a, w2[8,6,1,1]"])
def test_fused_conv(inputs: str, activation: str, silent: bool) -> None:
    """With a sum and an activation behind it; zeros stay zeros where the activation leaves them."""
    text = f"""
        a = Conv(x[N,3,4,4], w1[6,3,1,1])
        z = Conv(x, wz[8,3,1,1])
        b = com.microsoft.FusedConv<{activation}>({inputs})
        r = ReduceSum(b, axes{{1}})
        {"y = Identity(r)" if ", z" in inputs else "zz = ReduceSum(z, axes)"}
        {"" if ", z" in inputs else "y = Add(r, zz)"}
    """.replace("<>", "")
    names = {"a": 6, "z": 8} if ", z" in inputs else {"a": 6, "z": 8, "b": 8}
    if silent:
        assert_removal_equals_zeroing(build(text), groups=names)
        return
    shared = "z" if ", z" in inputs else "b"
    assert_inexact(build(text), {shared: 8})


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_fused_conv_in_groups(groups: int) -> None:
    """Groups shrink evenly, or go as a whole."""
    model = build(f"""
        a = Conv(x[N,3,4,4], w1[8,3,1,1])
        b = com.microsoft.FusedConv<group={groups}, activation="Relu">(a, w2[8,{8 // groups},1,1])
        y = Conv(b, w3[4,8,1,1])
    """)
    assert_removal_equals_zeroing(model)


def test_a_fused_conv_is_a_layer_only_without_activation() -> None:
    """What stands behind an activation is not a sum of products."""
    text = """
        a = Conv(x[N,3,4,4], w1[6,3,1,1])
        b = com.microsoft.FusedConv{}(a, w2[8,6,1,1], b2[8])
        y = Conv(b, w3[4,8,1,1])
    """
    plain, with_relu = (coupled(build(text.format(options))) for options in ("", '<activation="Relu">'))
    assert "b" in {one.node.name for one in consumers(plain)}
    assert "b" not in {one.node.name for one in consumers(with_relu)}


@pytest.mark.parametrize("a", ["b", "bt"])
@pytest.mark.parametrize("scale", ["", "alpha=0.5, "])
def test_fused_matmul(a: str, scale: str) -> None:
    """Either operand transposed, the product scaled."""
    turned = int(a == "bt")
    model = build(f"""
        b = MatMul(x[N,4,5], w1[5,8])
        bt = Transpose<perm=[0,2,1]>(b)
        c = com.microsoft.FusedMatMul<{scale}transA={turned}, transB=1>({a}, w2[3,8])
        d = com.microsoft.FusedMatMul<{scale}transB=1>(b, b)
        e = ReduceSum(c)
        f = ReduceSum(d)
        y = Add(e, f)
    """)
    assert_removal_equals_zeroing(model, groups={"b": 8, "c": 3})


@pytest.mark.parametrize(
    ("product", "sizes"),
    [
        ("com.microsoft.FusedMatMul<transBatchA=1>(a, w2[5,8,3])", [5, 8]),
        ("com.microsoft.FusedMatMul<transA=1, transBatchA=1>(at, w2[5,8,3])", [5, 8]),
        ("com.microsoft.FusedMatMul<transBatchB=1>(s, w2[8,5,3])", [5, 8]),
        ("com.microsoft.TransposeMatMul<transB=1>(s, w2[5,3,8])", [5, 8]),
    ],
)
def test_fused_matmul_of_turned_batches(product: str, sizes: list[int]) -> None:
    """Heads between rows and columns: [rows, heads, columns] and [columns, heads, rows]."""
    model = build(f"""
        a0 = MatMul(x[4,6], w1[6,40])
        a = Reshape(a0, s0{{4,5,8}})
        at = Transpose<perm=[2,1,0]>(a)
        s = Transpose<perm=[1,0,2]>(a)
        b = {product}
        y = ReduceSum(b, axes{{0}})
    """)
    assert_removal_equals_zeroing(model, groups=sizes)


@pytest.mark.parametrize(
    "options", ['<activation="Relu">', '<activation="Sigmoid", alpha=0.5>', '<activation="Relu", transA=1, transB=1>']
)
@pytest.mark.parametrize("bias", ["", ", b2[6]"])
def test_fused_gemm(options: str, bias: str) -> None:
    """A product of matrices with an activation behind it: FusedGemm(."""
    turned = "transA" in options
    model = build(f"""
        h = MatMul(x[4,5], w1[5,8])
        t = Transpose(h)
        b = com.microsoft.FusedGemm{options}({"t" if turned else "h"}, {"w2[6,8]" if turned else "w2[8,6]"}{bias})
        y = MatMul(b, w3[6,3])
    """)
    assert_removal_equals_zeroing(model, groups={"h": 8, "b": 6})


@pytest.mark.parametrize(
    "node",
    [
        "com.microsoft.Gelu(a)",
        "com.microsoft.QuickGelu<alpha=1.5>(a)",
        "com.microsoft.FastGelu(a)",
        "com.microsoft.FastGelu(a, b1[8])",
        "com.microsoft.BiasGelu(a, b1[8])",
    ],
)
def test_activations(node: str) -> None:
    """Zero stays zero, a bias included."""
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        b = {node}
        t = Transpose<perm=[0,2,1]>(b)
        y = MatMul(b, t)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


SKIPS = [
    ("SkipLayerNormalization", "a, h, g[8], b[8]"),
    ("SkipLayerNormalization", "a, h, g[8], b[8], c[8]"),
    ("SkipLayerNormalization", "a, h, g[8]"),
    ("SkipLayerNormalization", "a, s[4,8], g[8], b[8]"),
    ("SkipSimplifiedLayerNormalization", "a, h, g[8]"),
    ("SkipSimplifiedLayerNormalization", "a, h, g[8], c[8]"),
]


@pytest.mark.parametrize(("op_type", "inputs"), SKIPS)
def test_skip_layer_normalization(op_type: str, inputs: str) -> None:
    """The stream is inexact, what reads the sum and the normalised is not."""
    model = build(f"""
        h = MatMul(x[2,4,5], w0[5,8])
        a = MatMul(x, w1[5,8])
        n, , , total = com.microsoft.{op_type}<epsilon=0.001>({inputs})
        c1 = MatMul(n, w2[8,6])
        c2 = MatMul(c1, w3[6,8])
        d = Add(total, c2)
        e = MatMul(d, w4[8,3])
        f = MatMul(h, w5[8,3])
        y = Add(e, f)
    """)
    couplings = coupled(model)
    inexact = {group.name: group.size for group in couplings.groups if not group.exact}
    assert_removal_equals_zeroing(model, groups=[6] if "h," in inputs else [6, 8], inexact=inexact)
    assert set(inexact.values()) == {8}


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("node", ["LayerNormalization(a, g[8], b[8])", "SimplifiedLayerNormalization(a, g[8])"])
def test_normalization_in_the_standards_domain(node: str, opset: int) -> None:
    """ONNX Runtime writes its own under the standard's domain, before the standard had them too."""
    model = build(
        f"""
        a = MatMul(x[2,4,5], w1[5,8])
        n = {node}
        c = MatMul(n, w2[8,6])
        y = MatMul(c, w3[6,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"c": 6}, inexact={"a": 8})


def test_embeddings_normalised() -> None:
    """The width of the embeddings is inexact, without a masked form; words, places and segments stay."""
    ids = "int32 x1[2,4], int32 x2[2,4], words[9,8], places[6,8], segments[3,8], g[8], b[8]"
    model = build(f"""
        e, m = com.microsoft.EmbedLayerNormalization({ids})
        c = MatMul(e, w2[8,6])
        y = MatMul(c, w3[6,3])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={"c": 6}, inexact=[8], proven=False)
    assert not any(couplings.proves(group) for group in couplings.groups if not group.exact)
    assert "com.microsoft.EmbedLayerNormalization looks positions up by number" in reasons(couplings)


def test_distances_sum_over_columns() -> None:
    """Two rows differ by nothing where both are zero."""
    model = build("""
        a = MatMul(x[4,5], w1[5,8])
        b = MatMul(x2[3,5], w2[5,8])
        y = com.microsoft.CDist<metric="sqeuclidean">(a, b)
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})
    inexact = build("""
        a = MatMul(x[4,5], w1[5,8])
        b0 = MatMul(x2[3,5], w2[5,8])
        b = Sigmoid(b0)
        y = com.microsoft.CDist<metric="sqeuclidean">(a, b)
    """)
    assert_inexact(inexact, {"a": 8})


@pytest.mark.parametrize(
    ("node", "read"),
    [
        ("com.microsoft.ExpandDims(a, int32 at[]{1})", "ReduceSum(b, axes{1,3})"),
        ("com.microsoft.ExpandDims(a, int32 at[]{-1})", "ReduceSum(b, axes{2,3})"),
        ("com.microsoft.Pad(a, p{0,0,1,0,0,2})", "ReduceSum(b, axes{2})"),
        ("com.microsoft.Pad(a, p{0,1,0,0,2,0})", "ReduceSum(b, axes{2})"),
        ("com.microsoft.Trilu(t, k[]{0})", "ReduceSum(b, axes{1})"),
    ],
)
def test_forms_that_the_standard_has_too(node: str, read: str) -> None:
    """They do the same."""
    model = build(f"""
        a = MatMul(x[2,4,5], w1[5,8])
        q = Unsqueeze(a, last{{3}})
        t = Transpose<perm=[0,2,3,1]>(q)
        b = {node}
        y = {read}
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_numbers_that_tell_positions_apart() -> None:
    """Range( of ONNX Runtime is frozen, as the standard's."""
    model = build("""
        a = MatMul(x[2,5], w1[5,8])
        r = com.microsoft.Range(from[]{0.0}, to[]{8.0}, by[]{1.0})
        b = Mul(a, r)
        y = MatMul(b, w2[8,3])
    """)
    couplings = assert_removal_equals_zeroing(model, groups={})
    assert "com.microsoft.Range makes numbers that tell positions apart" in reasons(couplings)


OPTIMISED = ["resnet_torchscript.onnx", "vit_torchscript.onnx", "vit_dynamo.onnx", "unet_torch.onnx", "mlp_torch.onnx"]


def optimised(name: str, level: ort.GraphOptimizationLevel, folder: Path) -> Path:
    """A bundled model as ONNX Runtime writes it when it has optimised it."""
    options = ort.SessionOptions()
    options.log_severity_level, options.graph_optimization_level = 4, level
    options.optimized_model_filepath = str(folder / name)
    ort.InferenceSession(str(FIXTURES / name), options, providers=["CPUExecutionProvider"])
    return folder / name


@pytest.mark.parametrize("name", OPTIMISED)
def test_a_model_that_onnx_runtime_has_optimised(name: str, tmp_path: Path) -> None:
    """It has the groups that the original has, and removing equals zeroing."""
    fused = read(optimised(name, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, tmp_path))
    assert any(node.domain == "com.microsoft" for node in fused.nodes)
    original = coupled(read(FIXTURES / name).model)
    couplings = assert_removal_equals_zeroing(
        fused.model,
        groups=[group.size for group in original.groups if group.exact],
        inexact=[group.size for group in original.groups if not group.exact],
    )
    assert not any("no rule" in reason for reason in reasons(couplings))


def test_a_model_blocked_for_one_machine_says_so(tmp_path: Path) -> None:
    """Layers in blocks of channels stay, and the reason tells what to do."""
    graph = read(optimised("resnet_torchscript.onnx", ort.GraphOptimizationLevel.ORT_ENABLE_ALL, tmp_path))
    blocked = [node for node in graph.nodes if node.domain == "com.microsoft.nchwc"]
    assert blocked, "this machine has no blocked layers"
    text = (
        "com.microsoft.nchwc.Conv is blocked for one kind of machine; prune the model before it is optimised that far"
    )
    assert text in reasons(coupled(graph.model))
