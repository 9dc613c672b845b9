"""The plan: which channels of which group stay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from onnxprune.coupling.constants import Kept, variants
from onnxprune.coupling.couple import Couplings, Group, Slice
from onnxprune.errors import PlanError
from onnxprune.reading.records import STRICT, json_text, load_record
from onnxprune.rules.axes import Dim


@dataclass(frozen=True, config=STRICT)
class PlannedGroup:
    """A group of the original and the channels of it that stay, ascending."""

    name: str
    size: int
    kept: tuple[int, ...]
    exact: bool
    slices: tuple[Slice, ...]


@dataclass(frozen=True, config=STRICT)
class PlannedModel:
    """The model a plan was made for."""

    sha256: str
    ir_version: int
    opset: int


@dataclass(frozen=True, config=STRICT)
class Plan:
    """
    Which channels of which group stay; names are the original's.

    `tensors` gives, for each initializer of the pruned model that lost positions, the kept positions of each axis, so
    that the same plan can slice the weights in the framework that the model came from. `refitted` names the constants
    that got new numbers besides: only they may differ from the plain slices.
    """

    format: Literal["onnxprune-plan"]
    version: Literal[1]
    model: PlannedModel
    groups: tuple[PlannedGroup, ...]
    tensors: Mapping[str, Mapping[int, tuple[int, ...]]]
    refitted: tuple[str, ...] = ()

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """
        The plan in a JSON file.

        Raises:
            PlanError: no such file, or not a plan.
        """
        return load_plan(path)

    @property
    def removed(self) -> int:
        """Channels that go, in all groups."""
        return sum(group.size - len(group.kept) for group in self.groups)

    @property
    def kept_channels(self) -> dict[str, np.ndarray]:
        """The channels of each group that stay, by its name."""
        return {group.name: np.array(group.kept, np.int64) for group in self.groups}

    def kept(self, couplings: Couplings) -> Kept:
        """For each Dim that loses positions, those that stay."""
        self._check_model(couplings)
        known = {group.name: group for group in couplings.groups}
        found: dict[Dim, np.ndarray] = {}
        for planned in self.groups:
            group = known.get(planned.name)
            check_group(planned, group)
            assert group is not None
            if len(planned.kept) < planned.size:
                found.update(group.per_dim(np.array(planned.kept, np.int64)))
        return found

    def form(self, couplings: Couplings) -> Couplings:
        """The model in the form in which to zero is to remove: the masked one where inexact groups lose channels."""
        return couplings.masked if self.inexact_groups(couplings) else couplings

    def inexact_groups(self, couplings: Couplings) -> tuple[Group, ...]:
        """The inexact groups that lose channels."""
        narrowed = {group.name for group in self.groups if len(group.kept) < group.size}
        return tuple(group for group in couplings.groups if not group.exact and group.name in narrowed)

    def _check_model(self, couplings: Couplings) -> None:
        if self.model.sha256 != couplings.graph.sha256:
            raise PlanError(
                f"Plan does not fit this model: it was made for a file with sha256 {self.model.sha256[:12]}..., "
                f"this one has {couplings.graph.sha256[:12]}.... Prune the original model, or plan again for this one."
            )

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json_text(_ADAPTER, self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


_ADAPTER: TypeAdapter[Plan] = TypeAdapter(Plan)


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """
    The plan in a JSON file.

    Raises:
        PlanError: no such file, or not a plan.
    """
    return load_record(_ADAPTER, path, what="an onnxprune plan", made_by="onnxprune IN OUT --plan FILE")


def check_group(planned: PlannedGroup, group: Group | None) -> None:
    """Refuse a planned group that the model does not have in this form."""
    advice = "The plan was made for another model or version of it; plan again."
    if group is None:
        raise PlanError(f"Plan does not fit this model: there is no group {planned.name!r}. {advice}")
    if group.size != planned.size:
        raise PlanError(
            f"Plan does not fit this model: group {planned.name!r} has {group.size} channels, "
            f"the plan says {planned.size}. {advice}"
        )
    kept = np.array(planned.kept, np.int64)
    if kept.size == 0 or (np.diff(kept) <= 0).any() or kept[0] < 0 or kept[-1] >= group.size:
        raise PlanError(
            f"Plan does not fit this model: group {planned.name!r} must keep at least one of its {group.size} "
            f"channels, ascending and each once; the plan keeps {planned.kept[:8]}.... {advice}"
        )


def plan_of(couplings: Couplings, kept_channels: Mapping[str, np.ndarray]) -> Plan:
    """The plan that keeps these channels of the named groups, and all channels of the others."""
    graph = couplings.graph
    groups = tuple(
        PlannedGroup(
            name=group.name,
            size=group.size,
            kept=tuple(int(c) for c in np.sort(kept_channels.get(group.name, np.arange(group.size)))),
            exact=group.exact,
            slices=group.slices,
        )
        for group in couplings.groups
    )
    model = PlannedModel(graph.sha256, graph.model.ir_version, graph.opsets.get("", 0))
    bare = Plan("onnxprune-plan", 1, model, groups, {})
    tensors = {
        variant.name: {axis: tuple(int(p) for p in positions) for axis, positions in variant.kept.items()}
        for variant in variants(couplings, bare.kept(couplings))
        if variant.kept
    }
    return Plan("onnxprune-plan", 1, model, groups, tensors)


def plan_of_both(couplings: Couplings, first: Plan, then: Plan, names: Mapping[str, str]) -> Plan:
    """
    The plan that does at once what `first` does to the model and `then` to what came of it.

    `names` are the groups of the model under those that they have after `first`, as `same_groups` tells.
    """
    kept = first.kept_channels
    for name, further in then.kept_channels.items():
        if name in names:
            kept[names[name]] = kept[names[name]][further]
    return plan_of(couplings, kept)


def same_groups(first: Plan, then: Couplings) -> dict[str, str] | None:
    """
    For each group of a model that was pruned by `first`, its name in the original; None where one cannot be told.

    The same group has as many channels as were kept and slices the same axes. A name may have changed: two groups that
    merged into one axis were told apart by it, and one of them is gone when it is one channel wide.
    """
    found: dict[str, str] = {}
    for group in then.groups:
        fitting = [one for one in first.groups if len(one.kept) == group.size]
        alike = [one.name for one in fitting if not set(one.slices).isdisjoint(group.slices)]
        same = [group.name] if group.name in alike else alike
        if len(same) == 1:
            found[group.name] = same[0]
        elif group.exact:
            return None
    return found if len(set(found.values())) == len(found) else None
