"""Operators of classical machine learning, `ai.onnx.ml`, where they meet a channel."""

from __future__ import annotations

from collections.abc import Iterator

from onnxprune.rules.axes import sum_of
from onnxprune.rules.facts import Contracted, Equal, Fact, Frozen, Pointwise, Stores, Zero
from onnxprune.rules.lookup import looked_up, numbers_stay
from onnxprune.rules.operation import Op
from onnxprune.rules.registry import keeps_all, rule
from onnxprune.rules.vocabulary import fixed, same_axes

ML = "ai.onnx.ml"

keeps_all("CategoryMapper", domain=ML, because="works on texts")
keeps_all("CastMap", "DictVectorizer", "ZipMap", domain=ML, because="works on more than tensors")
keeps_all(
    *("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
    domain=ML,
    because="asks for features by number",
)
keeps_all(
    *("LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"),
    domain=ML,
    because="holds the weights of its features in attributes, which are not sliced",
)


@rule("Scaler", "Imputer", domain=ML)
def per_feature(op: Op) -> Iterator[Fact]:
    """Each number by itself; features stay where attributes hold a number for each of them."""
    x, y = op.input(0), op.output()
    yield Pointwise()
    yield from same_axes(x, y)
    if any(isinstance(value, list) and len(value) > 1 for value in op.node.attributes.values()):
        yield Frozen(x[-1], f"{op.node.label} holds a number for each feature in an attribute")


@rule("Binarizer", domain=ML)
def binarizer(op: Op) -> Iterator[Fact]:
    """One where a number is above the threshold, else zero."""
    yield Pointwise()
    yield from same_axes(op.input(0), op.output())
    if float(op.attribute("threshold", 0.0)) >= 0:
        yield Zero(op.output(), op.input(0))


@rule("LabelEncoder", domain=ML)
def named(op: Op) -> Iterator[Fact]:
    """Each label by itself becomes another."""
    yield Pointwise()
    yield from same_axes(op.input(0), op.output())


@rule("Normalizer", domain=ML)
def normalizer(op: Op) -> Iterator[Fact]:
    """Divided by the norm over the last axis, to which zeros add nothing; a largest number may be a zero."""
    x, y = op.input(0), op.output()
    yield from same_axes(x, y)
    if op.attribute("norm", "MAX") == "MAX":
        yield Frozen(x[-1], f"{op.node.label} looks for the largest in it")
    else:
        yield Contracted(x, x.rank - 1, by=(x,))
    yield Zero(y, x)


@rule("FeatureVectorizer", domain=ML)
def feature_vectorizer(op: Op) -> Iterator[Fact]:
    """Features laid end to end; how many of each is stored."""
    y = op.output()
    yield Equal(y[-1], sum_of(part[-1] for part in op.tensors))
    for element, part in enumerate(op.tensors):
        yield Equal(part[0], y[0])
        if "inputdimensions" in op.node.attributes:
            yield Stores("inputdimensions", element, part[-1])


@rule("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(op: Op) -> Iterator[Fact]:
    """Positions of the last axis looked up; stored indices follow them, any others fix the axis."""
    x, index, y = op.input(0), op.input(1), op.output()
    if x.rank == y.rank:
        for before, after in zip(x[:-1], y[:-1], strict=True):
            yield Equal(before, after)
    yield Equal(index[-1], y[-1])
    yield from numbers_stay(index)
    numbers = index.value if index.rank == 1 and x.rank == y.rank and x.rank > 1 else None
    yield from looked_up(op, x, x.rank - 1, index, numbers)
    yield Zero(y, x)


@rule("OneHotEncoder", domain=ML)
def one_hot_encoder(op: Op) -> Iterator[Fact]:
    """A new last axis of categories, which stay; the axes of what is encoded are free."""
    x, y = op.input(0), op.output()
    for before, after in zip(x.axes, y[:-1], strict=True):
        yield Equal(before, after)
    yield from fixed(y[-1:], "categories by number")
