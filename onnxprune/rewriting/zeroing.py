"""The other side of every proof: the original with the removed slices set to zero instead of removed."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept, variants
from onnxprune.coupling.couple import Couplings
from onnxprune.rewriting.editing import Draft


def zeroed(couplings: Couplings, kept: Kept) -> ModelProto:
    """The original model, same shapes, with every slice that `kept` removes set to zero; divisors keep their numbers."""
    draft = Draft(couplings.graph)
    for variant in variants(couplings, kept):
        constant = couplings.graph.constants[variant.constant]
        array = constant.array()
        if not variant.divides:
            for axis, positions in variant.kept.items():
                removed = np.ones(array.shape[axis], bool)
                removed[positions] = False
                np.moveaxis(array, axis, 0)[removed] = 0
        if variant.name == variant.constant:
            draft.change(variant.name, array)
            continue
        draft.add(variant.name, array, constant.tensor)
        for position, index in variant.uses:
            draft.read_instead(position, index, variant.name)
    return draft.finish(lambda name: None)
