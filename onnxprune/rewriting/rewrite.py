"""Write the smaller model: slice constants, update sizes, leave everything else as it is."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from onnxprune.coupling.constants import Kept, variants
from onnxprune.coupling.couple import Couplings
from onnxprune.rewriting.editing import Draft
from onnxprune.rewriting.sizes import adjust_sizes


def rewrite_kept(couplings: Couplings, kept: Kept) -> ModelProto:
    """The model with only the kept positions of each Dim in `kept`."""
    draft = Draft(couplings.graph)
    for variant in variants(couplings, kept):
        constant = couplings.graph.constants[variant.constant]
        array = constant.array()
        for axis, positions in variant.kept.items():
            array = np.take(array, positions, axis)
        if variant.name == variant.constant:
            if variant.kept:
                draft.change(variant.name, array)
            continue
        draft.add(variant.name, array, constant.tensor)
        for position, index in variant.uses:
            draft.read_instead(position, index, variant.name)
    sizes = adjust_sizes(couplings, kept, draft)
    return draft.finish(sizes.new_shape)
