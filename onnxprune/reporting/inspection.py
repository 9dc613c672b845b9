"""What `inspect` tells: the groups, their shares, and everything that is frozen."""

from __future__ import annotations

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from onnxprune.coupling.couple import Couplings, Group, Slice
from onnxprune.reading.records import STRICT, json_text


@dataclass(frozen=True, config=STRICT)
class InspectedGroup:
    """
    A group; `macs` and `params` are the shares (0 to 1) of the model that its layers carry.

    `exact` says whether it is pruned, `reason` why not; `proven` whether it could be, with `--inexact`.
    """

    name: str
    channels: int
    macs: float
    params: float
    exact: bool
    proven: bool
    reason: str
    slices: tuple[Slice, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, config=STRICT)
class FrozenAxes:
    """Positions of weights that stay, the reason, and the node it comes from ("" for the model's own interface)."""

    positions: int
    reason: str
    node: str
    slices: tuple[Slice, ...]


@dataclass(frozen=True, config=STRICT)
class Inspection:
    """A model as the pruner sees it: totals for one sample, groups, frozen axes."""

    macs: float
    params: float
    bytes: int
    nodes: int
    groups: tuple[InspectedGroup, ...]
    frozen: tuple[FrozenAxes, ...]

    def to_json(self) -> str:
        """The inspection as JSON text."""
        return json_text(_ADAPTER, self)


_ADAPTER: TypeAdapter[Inspection] = TypeAdapter(Inspection)


def inspect(couplings: Couplings) -> Inspection:
    """Everything the analysis found."""
    costs = couplings.costs
    macs, params = costs.macs.at({}), costs.params.at({})

    def inspected(group: Group) -> InspectedGroup:
        dims = frozenset(group.dims)
        return InspectedGroup(
            name=group.name,
            channels=group.size,
            macs=costs.macs.touching(dims).at({}) / (macs or 1),
            params=costs.params.touching(dims).at({}) / (params or 1),
            exact=group.exact,
            proven=couplings.proves(group),
            reason="" if group.inexact is None else group.inexact.text,
            slices=group.slices,
            layers=group.layers,
        )

    return Inspection(
        macs=macs,
        params=params,
        bytes=couplings.graph.file_bytes,
        nodes=len(couplings.graph.nodes),
        groups=tuple(inspected(group) for group in couplings.groups),
        frozen=tuple(
            FrozenAxes(refusal.size, refusal.reason.text, refusal.reason.node, refusal.slices)
            for refusal in couplings.refusals
        ),
    )
