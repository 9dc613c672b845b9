"""Which groups there are to prune, or why there is none."""

from __future__ import annotations

from onnxprune.choosing.targets import Limits
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import ModelError


def groups_to_prune(couplings: Couplings, limits: Limits) -> tuple[Group, ...]:
    """
    The groups that the limits leave.

    Raises:
        ModelError: there are none; the message says why.
        UsageError: a glob matches nothing.
    """
    groups = limits.groups(couplings)
    if not groups:
        raise ModelError(nothing_to_prune(couplings, limits))
    return groups


def nothing_to_prune(couplings: Couplings, limits: Limits) -> str:
    """Why there is no group, in the user's words."""
    if any(group.exact or limits.inexact for group in couplings.groups):
        left = ", ".join(repr(group.name) for group in couplings.groups[:6])
        return f"Expected a group to prune, found none: --only and --skip leave none of {left}. Leave more."
    reasons = [f"{group.name!r}: {group.inexact.text}" for group in couplings.groups if group.inexact is not None]
    reasons += [f"{refusal.slices[0].tensor!r}: {refusal.reason.text}" for refusal in couplings.refusals]
    if not couplings.groups and not couplings.refusals:
        reasons.append("no operator that multiplies by weights was found")
    reasons = list(dict.fromkeys(reasons)) or ["no layer reads weights"]
    listed = "".join(f"\n  - {reason}" for reason in reasons[:8])
    more = f"\n  - and {len(reasons) - 8} more" if len(reasons) > 8 else ""
    advice = "See `onnxprune inspect`."
    if any(couplings.proves(group) for group in couplings.groups):
        advice = (
            "Prune inexact groups all the same with --inexact: "
            "they are held against the model with what goes masked out."
        )
    return f"Expected a group of channels to prune, found none:{listed}{more}\n{advice}"
