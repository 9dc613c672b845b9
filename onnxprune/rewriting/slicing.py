"""Put another form of each constant in its place: sliced for the pruned model, zeroed for the proof."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxprune.coupling.constants import Kept, Variant, variants
from onnxprune.coupling.couple import Couplings
from onnxprune.reading.graph import Constant, Graph, Shape
from onnxprune.rewriting.editing import Draft


def install(
    draft: Draft,
    couplings: Couplings,
    kept: Kept,
    form: Callable[[np.ndarray, Variant], np.ndarray],
    shape: Callable[[Shape, Variant], Shape],
) -> None:
    """Give each constant that loses positions the numbers that `form` makes, split where its uses differ."""
    for variant in variants(couplings, kept):
        constant = couplings.graph.constants[variant.constant]
        if variant.name == variant.constant and not variant.is_other:
            continue
        draft.derive(variant.name, constant, shape(constant.shape, variant), made_later(constant, variant, form))
        for position, index in variant.uses:
            draft.read_instead(position, index, variant.name)


def made_later(
    constant: Constant, variant: Variant, form: Callable[[np.ndarray, Variant], np.ndarray]
) -> Callable[[], np.ndarray]:
    """The constant's numbers in that form, when asked for."""
    return lambda: form(constant.array(), variant)


def same_shape(shape: Shape, variant: Variant) -> Shape:
    """As it was."""
    return shape


def smaller_shape(shape: Shape, variant: Variant) -> Shape:
    """What is left of each axis."""
    return tuple(len(variant.kept[axis]) if axis in variant.kept else size for axis, size in enumerate(shape))


def sliced(array: np.ndarray, variant: Variant) -> np.ndarray:
    """Only the positions that stay, and numbers of positions as they are then counted."""
    for axis, positions in variant.kept.items():
        array = np.take(array, positions, axis)
    if variant.renumbered is not None:
        array = variant.renumbered[array % variant.renumbered.size].astype(array.dtype)
    return array


def with_zeros(graph: Graph, array: np.ndarray, variant: Variant) -> np.ndarray:
    """All positions, those that would go set to what stands for zero; a divisor keeps its numbers."""
    if variant.divides:
        return array
    zeros = variant.level.numbers(graph, array.shape)
    for axis, positions in variant.kept.items():
        removed = np.ones(array.shape[axis], bool)
        removed[positions] = False
        np.moveaxis(array, axis, 0)[removed] = np.moveaxis(zeros, axis, 0)[removed].astype(array.dtype)
    return array
