"""Operators of classical machine learning where they meet a channel."""

from __future__ import annotations

import pytest
from onnx import ModelProto, helper

from tests.models import build
from tests.oracle import assert_inexact, assert_removal_equals_zeroing, reasons

ML = "ai.onnx.ml"


def classical(text: str, op_type: str, *, version: int = 2, **attributes: object) -> ModelProto:
    """The model with its Identity node named c as an operator of `ai.onnx.ml`."""
    model = build(text)
    (node,) = (node for node in model.graph.node if node.name == "c")
    node.op_type, node.domain = op_type, ML
    node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    model.opset_import.append(helper.make_opsetid(ML, version))
    return model


BETWEEN = "a = MatMul(x[N,5], w1[5,8])\n b = Relu(a)\n c = Identity(b)\n y = MatMul(c, w2[8,3])"


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("Scaler", {"offset": [0.5], "scale": [2.0]}),
        ("Imputer", {"imputed_value_floats": [1.0], "replaced_value_float": 0.25}),
        ("Binarizer", {"threshold": 0.1}),
        ("Binarizer", {"threshold": -0.1}),
        ("Normalizer", {"norm": "L1"}),
        ("Normalizer", {"norm": "L2"}),
    ],
)
def test_features_one_by_one(op_type: str, attributes: dict[str, object]) -> None:
    """What treats all features alike lets them go; a norm gets nothing from a zero."""
    assert_removal_equals_zeroing(classical(BETWEEN, op_type, **attributes), groups={"a": 8})


def test_a_norm_of_what_is_not_zero() -> None:
    """Zeroed features that are not zero any more would count."""
    model = classical(BETWEEN.replace("Relu", "Sigmoid"), "Normalizer", norm="L2")
    assert_inexact(model, {"a": 8})


@pytest.mark.parametrize(
    ("op_type", "attributes", "reason"),
    [
        ("Scaler", {"offset": [0.5] * 8, "scale": [2.0] * 8}, "holds a number for each feature in an attribute"),
        (
            "Imputer",
            {"imputed_value_floats": [1.0] * 8, "replaced_value_float": 0.0},
            "holds a number for each feature in an attribute",
        ),
        ("Normalizer", {"norm": "MAX"}, "looks for the largest in it"),
    ],
)
def test_features_that_stay(op_type: str, attributes: dict[str, object], reason: str) -> None:
    """What knows features apart keeps them."""
    couplings = assert_removal_equals_zeroing(classical(BETWEEN, op_type, **attributes), groups={})
    assert f"{ML}.{op_type} {reason}" in reasons(couplings)


def test_a_linear_model_keeps_its_features() -> None:
    """Weights in attributes are not sliced; what lies before is pruned."""
    text = (
        "h = MatMul(x[N,5], w0[5,6])\n r = Relu(h)\n b = MatMul(r, w1[6,8])\n c = Identity(b)\n y = MatMul(c, w2[8,3])"
    )
    model = classical(text, "LinearRegressor", version=1, coefficients=[0.1 * n for n in range(64)], targets=8)
    couplings = assert_removal_equals_zeroing(model, groups={"h": 6})
    text = f"{ML}.LinearRegressor holds the weights of its features in attributes, which are not sliced"
    assert text in reasons(couplings)


def test_features_laid_end_to_end() -> None:
    """Each part is a group of its own, and how many features it has is stored."""
    text = """
        a = MatMul(x[N,5], w1[5,8])
        b = MatMul(x, w3[5,4])
        c = Concat<axis=1>(a, b)
        y = MatMul(c, w2[12,3])
    """
    model = classical(text, "FeatureVectorizer", version=1, inputdimensions=[8, 4])
    (node,) = (node for node in model.graph.node if node.name == "c")
    del node.attribute[:1]
    assert_removal_equals_zeroing(model, groups={"a": 8, "b": 4})


def test_features_picked() -> None:
    """Stored numbers of features follow them."""
    text = """
        a = MatMul(x[2,5], w1[5,8])
        c = Gather<axis=1>(a, i{7,0,3,3})
        d = MatMul(c, w2[4,3])
        e = MatMul(a, w3[8,3])
        y = Add(d, e)
    """
    model = classical(text, "ArrayFeatureExtractor", version=1)
    (node,) = (node for node in model.graph.node if node.name == "c")
    del node.attribute[:]
    assert_removal_equals_zeroing(model, groups=[3, 5])


def test_labels_and_categories() -> None:
    """Each label by itself, and each in a category of a new axis."""
    text = """
        a = MatMul(x[2,5], w1[5,8])
        b = Cast<to=7>(a)
        c = Identity(b)
        d = Cast<to=1>(c)
        y = MatMul(d, w2[8,3])
    """
    named = classical(text, "LabelEncoder", keys_int64s=[0, 1], values_int64s=[5, 7], default_int64=2)
    assert_removal_equals_zeroing(named, groups={"a": 8})
    text = text.replace("y = MatMul(d, w2[8,3])", "e = ReduceSum<keepdims=0>(d, axes{2})\n y = MatMul(e, w2[8,3])")
    text = text.replace("c = Identity(b)", "c = Unsqueeze(b, axes)")
    encoded = classical(text, "OneHotEncoder", version=1, cats_int64s=[0, 1], zeros=1)
    (node,) = (node for node in encoded.graph.node if node.name == "c")
    del node.input[1:]
    assert_removal_equals_zeroing(encoded, groups={"a": 8})
