"""What becomes of each constant when channels go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.coupling.codings import Level
from onnxprune.coupling.couple import Couplings
from onnxprune.coupling.types import Use
from onnxprune.rules.axes import Dim, kept_positions, leaves

Kept = Mapping[Dim, np.ndarray]
"""For each Dim that loses positions, those that stay, ascending."""


@dataclass(frozen=True, slots=True)
class Variant:
    """
    One form a constant takes in the pruned model, for the uses that agree on it.

    `kept` lists, for each axis that loses positions, those that stay. `uses` is empty when all uses share the form.
    `name` is the constant's own for the form that most uses share. Zeroing leaves a constant that `divides` alone; in
    any other, the numbers of `level` stand for zero.
    """

    constant: str
    name: str
    kept: Mapping[int, np.ndarray]
    uses: tuple[Use, ...]
    divides: bool
    level: Level


def variants(couplings: Couplings, kept: Kept) -> Iterator[Variant]:
    """Every form of every constant that loses positions in one of its uses, the constant's own name first."""
    taken = set(couplings.graph.names)
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
            form = Variant(name, name, positions, (use,) if use else (), divides, level)
            key = (*((number, stay.tobytes()) for number, stay in positions.items()), divides, level)
            forms.setdefault(key, []).append(form)
        if not any(form.kept for alike in forms.values() for form in alike):
            continue
        by_uses = sorted(forms.values(), key=len, reverse=True)
        for number, alike in enumerate(by_uses):
            own = name if number == 0 else fresh_name(f"{name}.{number + 1}", taken)
            uses = tuple(use for form in alike for use in form.uses) if len(by_uses) > 1 else ()
            yield replace(alike[0], name=own, uses=uses)


def fresh_name(wanted: str, taken: set[str]) -> str:
    """A name that no tensor has; it is taken from now on."""
    name, attempt = wanted, 1
    while name in taken:
        attempt += 1
        name = f"{wanted}.{attempt}"
    taken.add(name)
    return name
