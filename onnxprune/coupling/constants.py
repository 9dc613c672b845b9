"""What becomes of each constant when channels go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.coupling.codings import Level
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Use, facts_where
from onnxprune.reading.graph import fresh_name
from onnxprune.rules.axes import Axis, Dim, kept_positions, leaves
from onnxprune.rules.facts import Lookup

Kept = Mapping[Dim, np.ndarray]
"""For each Dim that loses positions, those that stay, ascending."""


@dataclass(frozen=True, slots=True)
class Variant:
    """
    One form a constant takes in the pruned model, for the uses that agree on it.

    `kept` lists, for each axis that loses positions, those that stay. `uses` is empty when all uses share the form.
    `name` is the constant's own for the form that most uses share. Zeroing leaves a constant that `divides` alone; in
    any other, the numbers of `level` stand for zero. Where its numbers are positions of an axis, `renumbered` says what
    becomes of each.
    """

    constant: str
    name: str
    kept: Mapping[int, np.ndarray]
    uses: tuple[Use, ...]
    divides: bool
    level: Level
    renumbered: np.ndarray | None = None

    @property
    def is_other(self) -> bool:
        """Is it anything else than the constant as it was?"""
        return bool(self.kept) or self.renumbered is not None


def variants(couplings: Couplings, kept: Kept) -> Iterator[Variant]:
    """Every form of every constant that loses positions in one of its uses, the constant's own name first."""
    taken = set(couplings.graph.names)
    numbers = dict(renumbering(couplings, kept))
    for name in couplings.graph.constants:
        forms: dict[tuple[object, ...], list[Variant]] = {}
        for use, tensor in couplings.constant_uses(name):
            positions = {
                number: kept_positions(axis, kept)
                for number, axis in enumerate(couplings.typing.axes(tensor))
                if any(leaf in kept for leaf in leaves(axis))
            }
            divides = couplings.zeroing.divides(name, use, couplings.graph)
            level = couplings.zeroing.level(name, use, couplings.graph)
            renumbered = numbers.get(use) if use else None
            form = Variant(name, name, positions, (use,) if use else (), divides, level, renumbered)
            anew = None if renumbered is None else renumbered.tobytes()
            key = (*((number, stay.tobytes()) for number, stay in positions.items()), divides, level, anew)
            forms.setdefault(key, []).append(form)
        if not any(form.is_other for alike in forms.values() for form in alike):
            continue
        by_uses = sorted(forms.values(), key=len, reverse=True)
        for number, alike in enumerate(by_uses):
            own = name if number == 0 else fresh_name(f"{name}.{number + 1}", taken)
            uses = tuple(use for form in alike for use in form.uses) if len(by_uses) > 1 else ()
            yield replace(alike[0], name=own, uses=uses)


def renumbering(couplings: Couplings, kept: Kept) -> Iterator[tuple[Use, np.ndarray]]:
    """The inputs whose numbers are positions of an axis that loses some, and what becomes of each number."""
    for op, fact in facts_where(couplings.typing, Lookup):
        if fact.place is not None:
            whole = couplings.typing.solver.resolve(fact.whole)
            if any(leaf in kept for leaf in leaves(whole)):
                yield (op.node.position, fact.place), new_numbers(whole, kept)


def new_numbers(axis: Axis, kept: Kept) -> np.ndarray:
    """For each position of the axis its number once those that go are gone."""
    stays = np.zeros(axis.size, np.int64)
    stays[kept_positions(axis, kept)] = 1
    return np.cumsum(stays) - 1
