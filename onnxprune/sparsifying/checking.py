"""The proof of zeros: they are where they were promised, and nothing else has changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx import ModelProto

from onnxprune.reading.numbers import numbers
from onnxprune.repairing.places import tensor_named
from onnxprune.sparsifying.blocks import excess
from onnxprune.sparsifying.sparsify import SparseLayer
from onnxprune.verifying.check import Check
from onnxprune.verifying.verify import only_refitted

NAME = "promised weights are zero"


def check_sparsity(
    before: ModelProto, after: ModelProto, layers: Sequence[SparseLayer], constants: Sequence[str]
) -> Check:
    """
    Are all promised zeros in `after`, every block within its pattern, and all but the named constants as in `before`?

    `layers` and `constants` are those of `Sparsified`.
    """
    others = only_refitted(before, after, frozenset(constants))
    problems = [*(problem for layer in layers for problem in problems_of(after, layer))]
    if not others.passed:
        problems.append(others.detail)
    zeros, size = (sum(getattr(layer, name) for layer in layers) for name in ("zeros", "size"))
    return Check(NAME, not problems, "; ".join(problems) or f"{zeros:,} of {size:,} in {len(layers)} layers")


def problems_of(model: ModelProto, layer: SparseLayer) -> Iterator[str]:
    """What does not hold of one layer."""
    tensor = tensor_named(model, layer.weight)
    if tensor is None:
        yield f"{layer.weight!r} is missing"
        return
    weight = numbers(tensor)
    found = int((weight == 0).sum())
    if found < layer.zeros:
        yield f"{layer.weight!r} has {found:,} zeros, {layer.zeros:,} were promised"
    if layer.pattern is not None and (bad := excess(weight, layer.axis, layer.pattern)):
        yield f"{layer.weight!r}: {bad:,} blocks hold more than {layer.pattern[0]} of {layer.pattern[1]}"
