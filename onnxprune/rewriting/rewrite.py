"""Write the smaller model: slice constants, update sizes, leave everything else as it is."""

from __future__ import annotations

from onnx import ModelProto

from onnxprune.choosing.plan import Plan
from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.reading.numbers import fits_whole, whole
from onnxprune.rewriting.editing import Draft
from onnxprune.rewriting.selections import select_by_number
from onnxprune.rewriting.sizes import adjust_sizes
from onnxprune.rewriting.slicing import install, sliced, smaller_shape


def rewrite(couplings: Couplings, plan: Plan) -> ModelProto:
    """
    The pruned model: every constant sliced to the channels that `plan` keeps, every stored size true.

    Nodes, names and weights that the plan does not touch stay byte for byte; the couplings' own model is not changed.
    A model above 2 GB refers to numbers outside it that only this process knows: `save_model` writes it with its data.

    Raises:
        PlanError: the plan was made for another model.
    """
    model = rewrite_kept(couplings, plan.kept(couplings))
    return whole(model) if fits_whole(couplings.graph.model) else model


def rewrite_kept(couplings: Couplings, kept: Kept) -> ModelProto:
    """The model with only the kept positions of each Dim in `kept`."""
    draft = Draft(couplings.graph)
    install(draft, couplings, kept, sliced, smaller_shape)
    sizes = adjust_sizes(couplings, kept, draft)
    select_by_number(couplings, kept, draft)
    return draft.finish(sizes.new_shape)
