"""What a user wants to reach, and the limits on the way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np

from onnxprune.coupling.costs import Costs, Price
from onnxprune.coupling.couple import Couplings, Group
from onnxprune.errors import UsageError

BOUNDS = ("macs", "params", "size", "latency")
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
MILLISECONDS = {"US": 1e-3, "MS": 1, "S": 1e3}


FAR_BELOW = 2 / 3
"""Of fast widths, one below this share of what a ratio leaves is not taken for it."""


@dataclass(frozen=True, slots=True)
class Amount:
    """An upper bound: a share of the original (0 to 1), or an absolute number."""

    number: float
    is_share: bool

    def of(self, original: float) -> float:
        """The bound in absolute terms."""
        return self.number * original if self.is_share else self.number


Bound = float | int | str | Amount | None


def amount(value: float | int | str | Amount, name: str) -> Amount:
    """
    Read an amount: "50%" or a number up to 1 is a share; "5M", "200K", "5MB" or a larger number is absolute.

    Of `latency`, "3.5ms" and a number above 1 are milliseconds.

    Raises:
        UsageError: not an amount, or not above zero.
    """
    if isinstance(value, Amount):
        return value
    is_time = name == "latency"
    found = parsed_amount(value, MILLISECONDS if is_time else {**UNITS, **{f"{unit}B": UNITS[unit] for unit in UNITS}})
    if found is None or not 0 < found.number < math.inf or (found.is_share and found.number > 1):
        amounts = "milliseconds such as 3.5ms" if is_time else "an amount such as 200K, 5M or 1.5G"
        raise UsageError(f"Expected for {name} a share up to 100% such as 50% or 0.5, or {amounts}, found {value!r}.")
    return found


def parsed_amount(value: float | int | str, units: Mapping[str, float]) -> Amount | None:
    if not isinstance(value, str):
        return Amount(float(value), is_share=value <= 1)
    matched = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%|[A-Z]*)\s*", value, re.IGNORECASE)
    if matched is None:
        return None
    number, unit = float(matched[1]), matched[2].upper()
    if unit == "%":
        return Amount(number / 100, is_share=True)
    if unit and unit not in units:
        return None
    return Amount(number * units.get(unit, 1), is_share=not unit and number <= 1)


@dataclass(frozen=True, slots=True)
class Targets:
    """
    What the pruned model must reach; all of it holds in the end.

    Args:
        macs: upper bound on the multiply-accumulates of one sample.
        params: upper bound on the parameters.
        size: upper bound on the bytes of the file.
        latency: upper bound on the milliseconds of a run, once these were measured.
        ratio: share of channels to remove in every group, from 0 to below 1; what stays is rounded down.
        threshold: channels whose score is below it go: a number, or "median" or "mean" of all scores.

    A bound is a share of the original ("50%" or 0.5) or absolute ("200K", "5MB", 3e6).

    Raises:
        UsageError: a bound, ratio or threshold that means nothing.
    """

    macs: Bound = None
    params: Bound = None
    size: Bound = None
    ratio: float | None = None
    threshold: float | str | None = None
    latency: Bound = None

    def __post_init__(self) -> None:
        for name in BOUNDS:
            if getattr(self, name) is not None:
                amount(getattr(self, name), name)
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise UsageError(f"Expected a ratio of at least 0 and below 1, found {self.ratio}.")
        if self.threshold not in (None, "median", "mean"):
            object.__setattr__(self, "threshold", threshold_number(self.threshold))

    @property
    def any(self) -> bool:
        """Is anything wanted at all?"""
        return any(getattr(self, name) is not None for name in (*BOUNDS, "ratio", "threshold"))

    def bounds(self, costs: Costs) -> Mapping[str, tuple[Price, float]]:
        """
        The cost and its bound for each upper bound that is given.

        Raises:
            UsageError: the latency is bounded, and was not measured.
        """
        priced: dict[str, Price] = {"macs": costs.macs, "params": costs.params, "size": costs.bytes}
        if costs.latency is not None:
            priced["latency"] = costs.latency
        given = {name: getattr(self, name) for name in BOUNDS if getattr(self, name) is not None}
        if not given.keys() <= priced.keys():
            raise UsageError(
                "Expected couplings whose latency was measured, found none of it. Use prune, or add it with "
                "onnxprune.timing.timing.latency_of_widths."
            )
        return {name: (priced[name], amount(bound, name).of(priced[name].at({}))) for name, bound in given.items()}


def threshold_number(value: float | str | None) -> float:
    """The threshold as a finite number."""
    try:
        number = float(value or 0)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"Expected a threshold of median, mean or a number, found {value!r}.")
    return number


@dataclass(frozen=True, slots=True)
class Limits:
    """
    What every plan keeps to.

    Args:
        only: globs on group names, or else on the layers that read a group's weights, or the weights' names: prune no
            other groups.
        skip: globs on any of these names: prune none of the groups they match.
        min_channels: channels that stay in each group at least.
        multiple_of: widths are multiples of it, or the full width.
        widths: for groups by their names, the widths they may have instead, ascending, the full one last.
        paces: for groups by their names, how fast they get narrower beside others where nothing tells what they lose:
            of pace p, the share s^p stays when s stays of a group of pace 1.
        floor: share of each group that stays as long as the bounds can be reached so.
        inexact: inexact groups may go as well, those that the masked form of the model proves.
    """

    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    min_channels: int = 1
    multiple_of: int = 1
    floor: float = 0.1
    inexact: bool = False
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    paces: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("min_channels", "multiple_of"):
            if getattr(self, name) < 1:
                raise UsageError(f"Expected {name.replace('_', '-')} of 1 or more, found {getattr(self, name)}.")

    def groups(self, couplings: Couplings) -> tuple[Group, ...]:
        """
        The groups that may be pruned.

        Raises:
            UsageError: a glob matches nothing.
        """
        for option, globs in (("--only", self.only), ("--skip", self.skip)):
            for glob in globs:
                if not any(matches(group, glob) for group in couplings.groups):
                    names = ", ".join(repr(group.name) for group in couplings.groups[:6])
                    raise UsageError(
                        f"{option} {glob!r} matches no group and no layer; there are groups {names}"
                        f"{', ...' if len(couplings.groups) > 6 else ''}. See `onnxprune inspect`."
                    )
        wanted = {group.name for glob in self.only for group in meant(couplings.groups, glob)}
        return tuple(
            group
            for group in couplings.groups
            if (group.exact or (self.inexact and couplings.proves(group)))
            and (not self.only or group.name in wanted)
            and not any(matches(group, glob) for glob in self.skip)
        )

    def least(self, group: Group, *, with_floor: bool) -> int:
        """The smallest width the group may have."""
        share = self.floor * group.size if with_floor else 0.0
        return self.rounded(group, max(self.min_channels, share, 1))

    def rounded(self, group: Group, wanted: float) -> int:
        """The smallest allowed width that is at least `wanted`."""
        allowed = self.allowed(group)
        return int(allowed[min(int(np.searchsorted(allowed, wanted)), len(allowed) - 1)])

    def fitting(self, group: Group, wanted: float) -> int:
        """The largest allowed width that is at most `wanted`, 0 if there is none; the next one if it is far below."""
        allowed = self.allowed(group)
        place = int(np.searchsorted(allowed, wanted, side="right"))
        below = int(allowed[place - 1]) if place else 0
        if group.name in self.widths and below < FAR_BELOW * wanted:
            return int(allowed[min(place, len(allowed) - 1)])
        return below

    def allowed(self, group: Group) -> np.ndarray:
        """The widths that the group may have, but for `min_channels`: ascending, the full one last."""
        if group.name in self.widths:
            return np.array(self.widths[group.name])
        return np.array([*range(self.multiple_of, group.size, self.multiple_of), group.size])


def meant(groups: Sequence[Group], glob: str) -> list[Group]:
    """The groups of a matching name; if there are none, those with such a layer or weight."""
    return [group for group in groups if fnmatchcase(group.name, glob)] or [g for g in groups if matches(g, glob)]


def matches(group: Group, glob: str) -> bool:
    """Does the glob match the group's name, one of its layers, or a weight it slices?"""
    names = (group.name, *group.layers, *(slot.tensor for slot in group.slices))
    return any(fnmatchcase(name, glob) for name in names)
