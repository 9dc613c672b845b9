"""A plan for targets whose model keeps to them, too; and how targets, limits and Dims carry over to a smaller model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnx import ModelProto

from onnxprune.choosing.choose import AllocationName, choose_between
from onnxprune.choosing.orders import Order
from onnxprune.choosing.plan import Plan
from onnxprune.choosing.targets import BOUNDS, Amount, Limits, Targets
from onnxprune.coupling.constants import Kept
from onnxprune.coupling.couple import Couplings
from onnxprune.errors import TargetError
from onnxprune.probing.sensitivities import Sensitivities
from onnxprune.reporting.measuring import parameter_count
from onnxprune.rewriting.rewrite import rewrite_kept
from onnxprune.rewriting.saving import written_bytes
from onnxprune.rules.axes import Dim


def dims_left(original: Couplings, kept: Kept, pruned: Couplings, names: Mapping[str, str]) -> dict[Dim, Dim] | None:
    """
    For the original's Dims those of a model that was pruned to `kept`; None where groups have lost whole Dims.

    A Dim that stands in no group any more is as wide as what was kept of it.
    """
    found: dict[Dim, Dim] = {}
    for name, before in names.items():
        old, new = original.group(before).dims, pruned.group(name).dims
        if len(old) != len(new):
            return None
        found |= dict(zip(old, new, strict=True))
    return {dim: Dim(len(stay)) for dim, stay in kept.items()} | found


def absolute(targets: Targets, bounds: Mapping[str, float]) -> Targets:
    """The targets with these upper bounds, in absolute terms."""
    macs, params, size, milliseconds = (
        Amount(bounds[name], is_share=False) if name in bounds else getattr(targets, name) for name in BOUNDS
    )
    return replace(targets, macs=macs, params=params, size=size, latency=milliseconds)


def planned(
    couplings: Couplings,
    orders: tuple[Order, ...],
    targets: Targets,
    limits: Limits,
    allocation: AllocationName | None,
) -> tuple[Plan, Sensitivities, ModelProto]:
    """The plan, the scores that decided and its model; where that exceeds its bounds, a smaller one is planned."""
    bounds = {name: bound for name, (_, bound) in targets.bounds(couplings.costs).items() if name in ("params", "size")}
    aimed, asked = dict(bounds), targets
    while True:
        try:
            plan, scores = choose_between(couplings, orders, asked, limits, allocation=allocation)
        except TargetError:
            if asked is targets:
                raise
            break
        pruned = rewrite_kept(couplings, plan.kept(couplings))
        found = {"params": parameter_count(pruned), "size": written_bytes(pruned, couplings.graph)}
        excess = {name: found[name] - bound for name, bound in bounds.items() if found[name] > bound}
        if not excess:
            return plan, scores, pruned
        aimed |= {name: aimed[name] - more for name, more in excess.items()}
        asked = absolute(targets, aimed)
    name = next(iter(excess))
    raise TargetError(
        f"Expected {name} of at most {bounds[name]:,.0f}, the smallest model found has {found[name]:,}. Ask for less."
    )
