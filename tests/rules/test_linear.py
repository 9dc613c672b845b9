"""Matrix products and contractions."""

from __future__ import annotations

import pytest

from onnxprune.repairing.consumers import consumers
from tests.models import OPSETS, build, definitions, since
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, coupled


@pytest.mark.parametrize("opset", definitions("MatMul"))
def test_matmul_of_two_layers(opset: int) -> None:
    """The hidden units between two MatMuls are a group."""
    model = build(
        """
        a = MatMul(x[N,5], w1[5,8])
        b = Add(a, b1[8])
        c = Relu(b)
        y = MatMul(c, w2[8,3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize(
    ("left", "right", "sizes"),
    [
        ("x[N,4,5]", "w1[5,8]", {"a": 8}),
        ("x[N,2,4,5]", "w1[5,8]", {"a": 8}),
        ("x[2,4,5]", "w1[2,5,8]", {"a": 8}),
        ("x[4,5]", "w1[6,5,8]", {"a:1": 6, "a:2": 8}),
        ("x[N,1,4,5]", "w1[6,5,8]", {"a:1": 6, "a:2": 8}),
        ("x[5]", "w1[5,8]", {"a": 8}),
        ("x[5]", "w1[6,5,8]", {"a:1": 6, "a:2": 8}),
    ],
)
def test_matmul_in_all_ranks(left: str, right: str, sizes: dict[str, int]) -> None:
    """Leading axes broadcast, a vector has no row axis, and a batch of weights is a group of its own."""
    model = build(f"""
        a = MatMul({left}, {right})
        b = Abs(a)
        c = Reshape(b, flat{{-1}})
        y = ReduceSum<keepdims=0>(b)
    """)
    assert_removal_equals_zeroing(model, groups=sizes)


@pytest.mark.parametrize(
    ("weights", "values"),
    [("w1[8,5]", "x[5]"), ("w1[6,8,5]", "x[5]"), ("w1[8,5]", "x[N,5,3]"), ("w1[6,8,5]", "x[N,1,5,3]")],
)
def test_weights_on_the_left(weights: str, values: str) -> None:
    """Where the weights stand on the left their rows are the group."""
    model = build(f"""
        a = MatMul({weights}, {values})
        y = ReduceL2<keepdims=0>(a)
    """)
    assert_removal_equals_zeroing(model, groups=[8] if weights.startswith("w1[8") else [6, 8])


@pytest.mark.parametrize("vector", ["w2[8]", "w2[8,1]"])
def test_a_column_reads_the_hidden_units(vector: str) -> None:
    """A vector as second operand sums over the last axis of the first."""
    model = build(f"""
        a = MatMul(x[N,4,5], w1[5,8])
        y = MatMul(a, {vector})
    """)
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", definitions("Gemm"))
@pytest.mark.parametrize(("trans_a", "first"), [(0, "x[N,5]"), (1, "x[5,N]")])
@pytest.mark.parametrize(("trans_b", "second"), [(0, "w1[5,8]"), (1, "w1[8,5]")])
@pytest.mark.parametrize("bias", ["b1[8]", "b1[1,8]", "b1[1]", "b1[]"])
def test_gemm_in_all_forms(trans_a: int, first: str, trans_b: int, second: str, bias: str, opset: int) -> None:
    """Either operand transposed, and every shape of the bias."""
    model = build(
        f"""
        a = Gemm<transA={trans_a}, transB={trans_b}, alpha=0.5, beta=2.0>({first}, {second}, {bias})
        y = Gemm<transB=1>(a, w2[3,8], b2[3])
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"a": 8})


@pytest.mark.parametrize("opset", since(11))
def test_gemm_without_bias(opset: int) -> None:
    """The bias of a Gemm may be absent."""
    model = build("a = Gemm(x[N,5], w1[5,8])\n y = Gemm(a, w2[8,3])", opset=opset)
    assert_removal_equals_zeroing(model, groups={"a": 8})


def test_gemm_whose_weights_stand_on_the_left() -> None:
    """Rows of the first operand are a group when that is the weight, its bias being a column."""
    model = build("""
        t = Gemm<transB=1>(w1[8,5], x[N,5], b1[8,1])
        y = Gemm<transA=1>(t, w2[8,3])
    """)
    assert_removal_equals_zeroing(model, groups={"t": 8})


@pytest.mark.parametrize("bias", ["b1[1]", "b1[1,1]", "b1[]"])
def test_a_bias_that_all_units_share_is_no_zero(bias: str) -> None:
    """A unit whose weights are zero still carries a shared bias, which a product of activations would see."""
    model = build(f"""
        a = Gemm(x[5,3], w1[3,8], {bias})
        t = Transpose(a)
        y = MatMul(a, t)
    """)
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize("opset", since(13))
@pytest.mark.parametrize(
    ("first", "second", "sizes"),
    [
        ('Einsum<equation="nsi,io->nso">(x[2,4,5], w1[5,8])', 'Einsum<equation="nso,op->nsp">(a, w2[8,3])', [8]),
        (
            'Einsum<equation="nsi,hio->nhso">(x[2,4,5], w1[2,5,8])',
            'Einsum<equation="nhso,hop->nsp">(a, w2[2,8,3])',
            [2, 8],
        ),
        ('Einsum<equation="...i,io->...o">(x[2,4,5], w1[5,8])', 'Einsum<equation="...o,op">(a, w2[8,3])', [8]),
        (
            'Einsum<equation="oi, nsi -> nso">(w1[8,5], x[2,4,5])',
            'Einsum<equation="nso,po,so->nsp">(a, w2[3,8], w3[4,8])',
            [8],
        ),
        ('Einsum<equation="nsi,io">(x[2,4,5], w1[5,8])', 'Einsum<equation="nso->n">(a)', [8]),
        ('Einsum<equation="nsi,io->ons">(x[2,4,5], w1[5,8])', 'Einsum<equation="o...,op->...p">(a, w2[8,3])', [8]),
        ('Einsum<equation="nsi,i->nsi">(x[2,4,5], w1[5])', 'Einsum<equation="nsi,ip->nsp">(a, w2[5,3])', []),
    ],
)
def test_einsum(first: str, second: str, sizes: list[int], opset: int) -> None:
    """Letters tell which axes are one, ellipses and an implicit output included."""
    model = build(f"a = {first}\n y = {second}", opset=opset)
    assert_removal_equals_zeroing(model, groups=sizes)


@pytest.mark.parametrize(
    ("made", "read", "groups"),
    [
        ('Einsum<equation="ni,iab->nab">(x[2,5], w1[5,8,8])', 'Einsum<equation="naa,ap->np">(a, w2[8,3])', {"a": 8}),
        ('Einsum<equation="ni,io->no">(x[2,5], w1[5,8])', 'Einsum<equation="no,po->np">(a, w2[3,1])', {"a": 8}),
        ('Einsum<equation="...si,...io->...so">(x[2,4,5], w1[1,5,8])', 'Einsum<equation="...o->...">(a)', {"a": 8}),
        (
            'Einsum<equation="...si,...io->...so">(x[2,4,5], w1[2,5,8])',
            'Einsum<equation="...o,op->...p">(a, w2[8,3])',
            {"a": 8},
        ),
    ],
)
def test_einsum_of_diagonals_and_of_what_broadcasts(made: str, read: str, groups: dict[str, int]) -> None:
    """A letter twice in one operand is one axis; where a letter has one position, nothing is said of that."""
    assert_removal_equals_zeroing(build(f"a = {made}\n y = {read}"), groups=groups)


@pytest.mark.parametrize(
    ("equation", "weight"), [("nso,op->nsp", "[8,3]"), ("nso,po->pns", "[3,8]"), ("nso,ho->nsh", "[3,8]")]
)
def test_an_einsum_with_one_constant_is_refitted(equation: str, weight: str) -> None:
    """It is a layer like any other: its output is a sum of products with one constant."""
    couplings = coupled(
        build(f"""
        a = MatMul(x[2,4,5], w1[5,8])
        b = Relu(a)
        y = Einsum<equation="{equation}">(b, w2{weight})
    """)
    )
    (consumer,) = (one for one in consumers(couplings) if one.input == "b")
    assert (consumer.weight, weight[1 + 2 * consumer.summed]) == (1, "8")


@pytest.mark.parametrize("opset", OPSETS)
def test_a_product_of_activations_is_a_sink(opset: int) -> None:
    """The width over which two activations are multiplied is a group."""
    model = build(
        """
        q = MatMul(x[N,4,5], w1[5,8])
        k = MatMul(x, w2[5,8])
        kt = Transpose<perm=[0,2,1]>(k)
        y = MatMul(q, kt)
        """,
        opset=opset,
    )
    assert_removal_equals_zeroing(model, groups={"q": 8})
