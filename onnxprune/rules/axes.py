"""
Dimension types: what the positions of a tensor axis are.

    Dim       a dimension variable of n positions
    Sum       dimension types laid end to end       (Concat, Split)
    Product   dimension types merged, row-major     (Flatten, heads, grouped channels)

Rules state equations between them; what a ``Dim`` is bound to, and whether it may lose positions, is known only to the
solver (`onnxprune.coupling`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Dim:
    """A dimension variable of `size` positions; two are equal only when they are the same object."""

    size: int

    def __repr__(self) -> str:
        return f"Dim{id(self) % 9973}:{self.size}"


@dataclass(frozen=True, slots=True)
class Sum:
    """`parts` laid end to end."""

    parts: tuple[Axis, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", sum(part.size for part in self.parts))


@dataclass(frozen=True, slots=True)
class Product:
    """`factors` merged into one axis, the last one fastest."""

    factors: tuple[Axis, ...]
    size: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", math.prod(factor.size for factor in self.factors))


Axis = Dim | Sum | Product


def sum_of(parts: Iterable[Axis]) -> Axis:
    """The parts end to end, nested sums flattened and empty parts dropped."""
    flat: list[Axis] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Sum) else (part,))
    kept = tuple(part for part in flat if part.size != 0)
    return kept[0] if len(kept) == 1 else Sum(kept)


def product_of(factors: Iterable[Axis]) -> Axis:
    """The factors merged, nested products flattened and factors of one position dropped."""
    flat: list[Axis] = []
    for factor in factors:
        flat.extend(factor.factors if isinstance(factor, Product) else (factor,))
    kept = tuple(factor for factor in flat if factor.size != 1)
    if not kept:
        return flat[-1] if flat else Dim(1)
    return kept[0] if len(kept) == 1 else Product(kept)


def leaves(axis: Axis) -> Iterator[Dim]:
    """Every Dim in `axis`, in order, repeats included."""
    match axis:
        case Dim():
            yield axis
        case Sum(parts):
            for part in parts:
                yield from leaves(part)
        case Product(factors):
            for factor in factors:
                yield from leaves(factor)


def width(axis: Axis, widths: Mapping[Dim, int]) -> int:
    """Number of positions of `axis` once each Dim has its width in `widths` (its own size if not listed)."""
    match axis:
        case Dim():
            return widths.get(axis, axis.size)
        case Sum(parts):
            return sum(width(part, widths) for part in parts)
        case Product(factors):
            return math.prod(width(factor, widths) for factor in factors)


def spread(axis: Axis, vector_of: Callable[[Dim], np.ndarray]) -> np.ndarray:
    """
    One value per position of `axis`: each Dim gives a vector, parts are concatenated, factors multiplied.

    With 0/1 vectors this is a mask of the positions that stay; with gates it is the gate of the whole axis.
    """
    match axis:
        case Dim():
            return vector_of(axis)
        case Sum(parts):
            return np.concatenate([spread(part, vector_of) for part in parts])
        case Product(factors):
            merged = spread(factors[0], vector_of)
            for factor in factors[1:]:
                merged = np.multiply.outer(merged, spread(factor, vector_of)).reshape(-1)
            return merged


def kept_positions(axis: Axis, kept: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """Positions of `axis` that stay, ascending, when each Dim in `kept` keeps only the positions listed for it."""
    return np.flatnonzero(spread(axis, lambda dim: stay_mask(dim, kept)))


def channels_along(axis: Axis, dim: Dim) -> np.ndarray:
    """For each position of `axis`, which position of `dim` it belongs to; -1 for none."""
    match axis:
        case Dim():
            return np.arange(axis.size) if axis is dim else np.full(axis.size, -1)
        case Sum(parts):
            return np.concatenate([channels_along(part, dim) for part in parts])
        case Product(factors):
            merged = channels_along(factors[0], dim)
            for factor in factors[1:]:
                merged = np.maximum.outer(merged, channels_along(factor, dim)).reshape(-1)
            return merged


def stay_mask(dim: Dim, kept: Mapping[Dim, np.ndarray]) -> np.ndarray:
    """A boolean per position of `dim`: does it stay?"""
    if dim not in kept:
        return np.ones(dim.size, bool)
    mask = np.zeros(dim.size, bool)
    mask[kept[dim]] = True
    return mask
