"""Find which channels must be removed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from onnxprune.coupling.costs import Costs, batch_dims, costs_of
from onnxprune.coupling.masking import masked_model
from onnxprune.coupling.naming import layer_name, makers_of, readers_of, unique_names
from onnxprune.coupling.types import Typing, Use, facts_where, solve_types
from onnxprune.coupling.unification import Reason
from onnxprune.coupling.zeros import Leak, Zeroing, leaks_of, zeroing_of
from onnxprune.errors import UsageError
from onnxprune.reading.graph import Graph
from onnxprune.reading.read import read
from onnxprune.rules.axes import Axis, Dim, Product, Sum, leaves
from onnxprune.rules.facts import Stores
from onnxprune.rules.operation import Tensor

MOST_NAMED = 20
"""Names that a message lists."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One axis of a constant that loses positions with a group."""

    tensor: str
    axis: int


@dataclass(frozen=True, slots=True)
class Group:
    """
    Channels that can be removed one by one, each with all its slices.

    `dims` are the group's dimension variables, its channels laid end to end. `inexact` says why a removal would change
    what the other channels compute; such a group is never pruned unless asked for, and then held against the masked
    form of the model.
    """

    name: str
    dims: tuple[Dim, ...]
    slices: tuple[Slice, ...]
    layers: tuple[str, ...]
    inexact: Reason | None

    @property
    def size(self) -> int:
        """Number of channels."""
        return sum(dim.size for dim in self.dims)

    @property
    def exact(self) -> bool:
        return self.inexact is None

    def per_dim(self, kept: np.ndarray) -> dict[Dim, np.ndarray]:
        """Kept channels, given as positions in the group, as positions in each of its dims."""
        starts = np.cumsum([0, *(dim.size for dim in self.dims)])
        return {
            dim: kept[(kept >= start) & (kept < start + dim.size)] - start
            for dim, start in zip(self.dims, starts, strict=False)
        }


NOT_FOUND = Reason("it is not found again in the masked form of the model")


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """The name."""


Entry = TypeVar("Entry", bound=Named)


def of_that_name(name: str, entries: Sequence[Entry], what: str) -> Entry:
    """
    The entry of that name.

    Raises:
        UsageError: there is none.
    """
    found = next((entry for entry in entries if entry.name == name), None)
    if found is None:
        known = ", ".join(repr(entry.name) for entry in entries[:MOST_NAMED])
        more = ", ..." if len(entries) > MOST_NAMED else ""
        raise UsageError(f"Expected the name of a {what} ({known or 'there is none'}{more}), found {name!r}.")
    return found


@dataclass(frozen=True, slots=True)
class Refusal:
    """Positions of constants that stay, and why."""

    size: int
    slices: tuple[Slice, ...]
    reason: Reason


@dataclass(frozen=True)
class Couplings:
    """
    The groups of a model, what is frozen and why, its costs, and the dimension type of every axis.

    `zeroing` says what zeroing does to constants, `leaks` are the places that zeroing alone does not close.
    """

    graph: Graph
    typing: Typing
    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]
    costs: Costs
    zeroing: Zeroing
    leaks: tuple[Leak, ...]

    @cached_property
    def batch(self) -> frozenset[Dim]:
        """The Dims that count samples."""
        return batch_dims(self.graph, self.typing)

    @cached_property
    def masked(self) -> Couplings:
        """
        The same groups in a model that computes the same, where inexact ones are exact as far as masks can do that.

        What sums or averages over them there counts positions that constants name, which go with the group: with zeros
        in these the model computes what the rewritten one does.
        """
        inexact = frozenset(dim for group in self.groups if not group.exact for dim in group.dims)
        if not inexact:
            return self
        graph = read(masked_model(self.graph, self.typing, self.leaks, inexact), input_shapes=self.graph.input_shapes)
        graph = replace(graph, digest=self.graph.digest, path=self.graph.path, file_bytes=self.graph.file_bytes)
        found = couple(graph)
        return replace(found, groups=groups_again(self, found))

    def proves(self, group: Group) -> bool:
        """Can the removal of the group's channels be held against something: the zeroed model, or its masked form?"""
        return group.exact or self.masked.group(group.name).exact

    @cached_property
    def quantized(self) -> tuple[str, ...]:
        """The constants whose numbers stand for others."""
        nodes = self.graph.nodes
        return tuple(dict.fromkeys(nodes[position].inputs[index] for position, index in self.zeroing.codings))

    def group(self, name: str) -> Group:
        """The group of that name."""
        return of_that_name(name, self.groups, "group")

    def constant_uses(self, name: str) -> tuple[tuple[Use | None, Tensor], ...]:
        """How a constant is typed: once for all (use None), or at each of its uses."""
        uses = [(node.position, index) for node, index in self.graph.readers.get(name, ())]
        typed = tuple((use, self.typing.uses[use]) for use in uses if use in self.typing.uses)
        return typed or ((None, self.typing.tensors[name]),)


def couple(graph: Graph) -> Couplings:
    """
    Find which channels must be removed together.

    Two axes share a group when a chain of equations joins them::

        conv1.weight axis 0 ── conv1.out axis 1 ── add.out axis 1 ── conv4.weight axis 1
    """
    typing = solve_types(graph)
    zeroing = zeroing_of(graph, typing)
    leaks = tuple(leaks_of(graph, typing, zeroing))
    for leak in leaks:
        for dim in leak.dims:
            typing.solver.mark_inexact(dim, leak.reason)
    where = constant_axes(graph, typing)
    families = tuple(prunable(typing, weighty(where, graph)))
    makers, readers = tuple(makers_of(typing)), tuple(readers_of(graph, typing))
    names = unique_names(tuple(layer_name(family, makers) or where[family[0]][0].tensor for family in families))
    groups = tuple(
        Group(
            name=name,
            dims=family,
            slices=tuple(dict.fromkeys(slot for dim in family for slot in where[dim])),
            layers=tuple(name for name, read in readers if not read.isdisjoint(family)),
            inexact=next((reason for dim in family if (reason := typing.solver.inexact(dim))), None),
        )
        for name, family in zip(names, families, strict=True)
    )
    refusals = tuple(refusals_of(typing, weighty(where, graph)))
    return Couplings(graph, typing, groups, refusals, costs_of(graph, typing), zeroing, leaks)


def groups_again(old: Couplings, new: Couplings) -> tuple[Group, ...]:
    """The groups of `old`, in terms of the types of `new`, whose graph has all tensors of the old one."""
    again, solver = same_dims(old, new), new.typing.solver
    groups = []
    for group in old.groups:
        if any(dim not in again for dim in group.dims):
            groups.append(replace(group, inexact=NOT_FOUND))
            continue
        dims = tuple(again[dim] for dim in group.dims)
        reasons = [reason for dim in dims if (reason := solver.frozen(dim) or solver.inexact(dim)) is not None]
        groups.append(replace(group, dims=dims, inexact=next(iter(reasons), None)))
    return tuple(groups)


def same_dims(old: Couplings, new: Couplings) -> dict[Dim, Dim]:
    """
    For each Dim the one that stands in its place when the same tensors are typed again.

    Computed tensors tell; of Dims that stand in none (the width of queries inside a fused attention) constants do.
    """
    found = dims_in_place(old, new, old.graph.makers.keys())
    return dims_in_place(old, new, old.graph.constants.keys()) | found


def dims_in_place(old: Couplings, new: Couplings, names: Set[str]) -> dict[Dim, Dim]:
    """For each Dim of these tensors the one in its place, where all of them tell the same."""
    found: dict[Dim, Dim] = {}
    apart: set[Dim] = set()
    for name in names & old.typing.tensors.keys() & new.typing.tensors.keys():
        tensors = old.typing.axes(old.typing.tensors[name]), new.typing.axes(new.typing.tensors[name])
        for one, other in zip(*tensors, strict=True):
            for dim, again in paired(one, other):
                if found.setdefault(dim, again) is not again:
                    apart.add(dim)
    return {dim: again for dim, again in found.items() if dim not in apart}


def paired(one: Axis, other: Axis) -> Iterator[tuple[Dim, Dim]]:
    """The Dims that stand in the same places of two types of one axis, as far as these are built alike."""
    match one, other:
        case Dim(), Dim():
            yield one, other
        case (Sum(parts), Sum(others)) | (Product(parts), Product(others)):
            if [part.size for part in parts] == [part.size for part in others]:
                for part, again in zip(parts, others, strict=True):
                    yield from paired(part, again)


def constant_axes(graph: Graph, typing: Typing) -> dict[Dim, tuple[Slice, ...]]:
    """For each Dim, the axes of constants that it stands in, in graph order."""
    found: dict[Dim, dict[Slice, None]] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.inputs):
            tensor = typing.at(node, index) if name in graph.constants else None
            if tensor is None:
                continue
            for number, axis in enumerate(typing.axes(tensor)):
                for dim in leaves(axis):
                    found.setdefault(dim, {})[Slice(name, number)] = None
    return {dim: tuple(slots) for dim, slots in found.items()}


def weighty(where: Mapping[Dim, tuple[Slice, ...]], graph: Graph) -> dict[Dim, tuple[Slice, ...]]:
    """Only the Dims that stand in weights, not in mere indices and sizes."""
    return {dim: slots for dim, slots in where.items() if any(graph.constants[s.tensor].is_weight for s in slots)}


def prunable(typing: Typing, where: Mapping[Dim, tuple[Slice, ...]]) -> Iterator[tuple[Dim, ...]]:
    """The Dims of each group: one that is free, or several free unit positions."""
    free = [dim for dim in where if typing.solver.frozen(dim) is None]
    yield from ((dim,) for dim in free if dim.size > 1)
    units = [dim for dim in free if dim.size == 1 and typing.solver.is_unit(dim)]
    yield from (alike for alike in units_alike(units, typing) if len(alike) > 1)


def units_alike(units: Sequence[Dim], typing: Typing) -> tuple[tuple[Dim, ...], ...]:
    """Units that stand in the same axes everywhere: as long as one of them stays, none of these loses all positions."""
    places: dict[Dim, set[int]] = {unit: set() for unit in units}
    for number, axis in enumerate(axes_never_empty(typing) if units else ()):
        for dim in leaves(typing.solver.resolve(axis)):
            if dim in places:
                places[dim].add(number)
    alike: dict[frozenset[int], list[Dim]] = {}
    for unit, standing in places.items():
        alike.setdefault(frozenset(standing), []).append(unit)
    return tuple(tuple(group) for group in alike.values())


def axes_never_empty(typing: Typing) -> Iterator[Axis]:
    """Axes of all tensors, and widths that are stored as negative numbers, since no such number says "none"."""
    for tensor in (*typing.tensors.values(), *typing.uses.values()):
        yield from tensor.axes
    yield from (fact.size for _, fact in facts_where(typing, Stores) if fact.sign < 0)


def refusals_of(typing: Typing, where: Mapping[Dim, tuple[Slice, ...]]) -> Iterator[Refusal]:
    """What is frozen although somebody might want to prune it; single positions of one reason together."""
    units: dict[Reason, list[Dim]] = {}
    for dim, slots in where.items():
        reason = typing.solver.frozen(dim)
        if reason is None or reason.by_nature:
            continue
        if dim.size > 1:
            yield Refusal(dim.size, slots, reason)
        elif typing.solver.is_unit(dim):
            units.setdefault(reason, []).append(dim)
    for reason, alike in units.items():
        yield Refusal(len(alike), tuple(dict.fromkeys(slot for dim in alike for slot in where[dim])), reason)
