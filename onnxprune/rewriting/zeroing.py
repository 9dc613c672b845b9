"""The other side of every proof: the original with the removed slices set to zero instead of removed."""

from __future__ import annotations

from functools import partial

from onnx import ModelProto

from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.rewriting.editing import Draft
from onnxprune.rewriting.slicing import install, same_shape, with_zeros


def zeroed(couplings: Couplings, kept: Kept) -> ModelProto:
    """The original, same shapes, every slice that `kept` removes set to what is zero; divisors keep their numbers."""
    draft = Draft(couplings.graph)
    install(draft, couplings, kept, partial(with_zeros, couplings.graph), same_shape)
    return draft.finish(lambda name: None)
