"""Layers by themselves: they are what stands in the model at those widths."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from onnxprune.coupling.couple import Couplings, couple
from onnxprune.reading.observing import observe, session_for
from onnxprune.reading.read import read
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rules.axes import Dim
from onnxprune.timing.kernels import Kernel
from onnxprune.timing.layers import Layers, Unbuildable, layers_at
from onnxprune.timing.times import quietest
from onnxprune.timing.trials import trial_of
from tests.bundled import MODELS, bundled, twins_later
from tests.models import build

BATCH = 3


def some_kept(couplings: Couplings, seed: int) -> dict[Dim, np.ndarray]:
    """Some channels of every exact group, at least one of each Dim."""
    random = np.random.default_rng(seed)
    dims = [dim for group in couplings.groups if group.exact for dim in group.dims if dim.size > 1]
    return {dim: np.arange(random.integers(1, dim.size + 1)) for dim in dims}


def shapes_in_model(couplings: Couplings, kept: dict[Dim, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """All shapes of the rewritten model at the batch."""
    graph = couplings.graph
    inputs = {name: (BATCH, *shape[1:]) for name, shape in graph.input_shapes.items()}
    return dict(observe(rewrite_kept(couplings, kept), graph.inputs, inputs).shapes)


def shapes_by_itself(layers: Layers, kept: dict[Dim, np.ndarray]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What each layer makes when it is run alone at these widths."""
    graph = layers.couplings.graph
    for layer in layers.all:
        trial = trial_of(layers, layer, {dim: len(stay) for dim, stay in kept.items()})
        session = session_for(trial.model())
        made = dict(zip(trial.outputs, session.run(None, trial.feeds()), strict=True))
        for number, position in enumerate(layer.positions):
            for index, name in enumerate(graph.nodes[position].outputs):
                if f"onnxprune.{number}.{index}" in made:
                    yield name, made[f"onnxprune.{number}.{index}"].shape


@pytest.mark.parametrize("name", twins_later(MODELS))
def test_a_layer_makes_what_it_makes_in_the_pruned_model(name: str) -> None:
    """At its own widths and at others, with every size that a node stores, at another batch than was seen."""
    couplings = bundled(name)
    layers = layers_at(couplings, BATCH)
    for kept in ({}, some_kept(couplings, 0), some_kept(couplings, 1)):
        expected = shapes_in_model(couplings, kept)
        found = dict(shapes_by_itself(layers, kept))
        assert found
        assert all(shape == expected[name] for name, shape in found.items())


@pytest.mark.parametrize("name", twins_later(MODELS))
def test_every_node_that_computes_with_data_is_in_one_layer(name: str) -> None:
    """And what computes with shapes alone is in none; the multiplications of the layers are those of the model."""
    couplings = bundled(name)
    positions = [position for layer in layers_at(couplings, 1).all for position in layer.positions]
    assert len(positions) == len(set(positions))
    outside = [node for node in couplings.graph.main if node.position not in positions]
    assert all(name in couplings.typing.knowable for node in outside for name in node.outputs if name)


def test_layers_alike_have_one_key() -> None:
    """So that a network of equal blocks is timed once; another width, or batch, is another key."""
    couplings = bundled("vit_torchscript")
    layers = layers_at(couplings, 1)
    keys = [trial_of(layers, layer, {}).key for layer in layers.all]
    assert len(set(keys)) <= math.ceil(len(keys) / 2)
    widest = max((group for group in couplings.groups if group.exact), key=lambda group: group.size)
    layer = next(layer for layer in layers.all if not layer.dims.isdisjoint(widest.dims))
    narrow = trial_of(layers, layer, {dim: dim.size - 1 for dim in widest.dims})
    assert narrow.key != trial_of(layers, layer, {}).key
    assert trial_of(layers, layer, {}).key == trial_of(layers_at(couplings, 1), layer, {}).key
    assert trial_of(layers, layer, {}).key != trial_of(layers_at(couplings, 2), layer, {}).key


def test_a_layer_with_a_body_cannot_stand_by_itself() -> None:
    """It is told apart, and counts as it is."""
    model = build("""
        h = MatMul(x[N,4], w1[4,6])
        y = MatMul(h, w2[6,3])
    """)
    then = model.graph.node[1]
    body = type(model.graph)()
    body.name = "then"
    node = body.node.add(op_type="Identity", input=[then.input[0]], output=["inner"])
    assert node.output
    body.output.add(name="inner")
    condition = model.graph.initializer.add(name="yes", data_type=9, dims=[])
    condition.int32_data.append(1)
    branch = model.graph.node.add(op_type="If", name="if", input=["yes"], output=["again"])
    for attribute in ("then_branch", "else_branch"):
        branch.attribute.add(name=attribute, type=5).g.CopyFrom(body)
    nodes = [model.graph.node[0], branch, then]
    then.input[0] = "again"
    copies = [type(node)() for node in nodes]
    for copy, original in zip(copies, nodes, strict=True):
        copy.CopyFrom(original)
    del model.graph.node[:]
    model.graph.node.extend(copies)
    layers = layers_at(couple(read(model)), 1)
    layer = next(layer for layer in layers.all if 1 in layer.positions)
    with pytest.raises(Unbuildable, match="has bodies"):
        trial_of(layers, layer, {})


@pytest.mark.parametrize("name", ["resnet_torchscript", "vit_dynamo"])
def test_copies_of_a_layer_are_the_layer(name: str) -> None:
    """Each makes what the layer makes, under numbers that follow those of the copy before."""
    layers = layers_at(bundled(name), 1)
    for layer in layers.all:
        trial = trial_of(layers, layer, {})
        found = session_for(trial.model(2)).run(None, trial.feeds(2))
        once = session_for(trial.model()).run(None, trial.feeds())
        assert len(found) == 2 * len(once)
        for number, made in enumerate(found):
            assert np.array_equal(made, once[number % len(once)])
        names = [node.name for node in trial.model(2).graph.node]
        assert names == [f"onnxprune.{number}." for number in range(2 * len(trial.nodes))]


def test_of_copies_the_quieter_one_counts() -> None:
    """Node by node: the first kernel that runs wakes the threads, whichever copy it belongs to."""
    kernels = [Kernel(number, "Conv", time) for number, time in ((0, 9.0), (1, 4.0), (2, 5.0), (3, 6.0))]
    assert sorted(quietest(kernels, 2)) == [4.0, 5.0]
    assert list(quietest([Kernel(0, "a", 1.0), Kernel(0, "b", 2.0), Kernel(None, "c", 9.0)], 1)) == [3.0]
