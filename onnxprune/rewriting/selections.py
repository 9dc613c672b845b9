"""Nodes that select every so many positions: where these are no longer even, they select by number instead."""

from __future__ import annotations

import numpy as np

from onnxprune.coupling.constants import Kept, new_numbers
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import facts_where
from onnxprune.rewriting.editing import Draft
from onnxprune.rules.axes import kept_positions, leaves
from onnxprune.rules.facts import Lookup


def select_by_number(couplings: Couplings, kept: Kept, draft: Draft) -> None:
    """Let every such node that loses positions be a Gather with constant indices."""
    resolve = couplings.typing.solver.resolve
    for op, fact in facts_where(couplings.typing, Lookup):
        whole, found = resolve(fact.whole), resolve(fact.found)
        if fact.place is not None or not any(leaf in kept for leaf in (*leaves(whole), *leaves(found))):
            continue
        stay = np.array(fact.positions)[kept_positions(found, kept)]
        index = draft.fresh(f"{op.node.outputs[0]}.positions")
        draft.add(index, new_numbers(whole, kept)[stay])
        draft.become(op.node.position, "Gather", [op.node.inputs[0], index], axis=fact.axis)
