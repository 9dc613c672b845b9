"""All groups getting narrower channel by channel, in the order in which channels are missed least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.choosing.orders import Widths
from onnxprune.choosing.targets import Limits
from onnxprune.coupling.couple import Group


class Narrowing:
    """
    Groups getting narrower from `start` within the limits.

    `priorities[group]` `[width]` are those of its channels, ascending: over all groups low ones go first.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        start: Widths,
        priorities: Mapping[str, np.ndarray],
        limits: Limits,
        *,
        with_floor: bool,
    ) -> None:
        self.groups = groups
        self.start = start
        self.limits = limits
        self.least = {
            group.name: min(start[group.name], limits.least(group, with_floor=with_floor)) for group in groups
        }
        owners = np.repeat(np.arange(len(groups)), [start[group.name] for group in groups])
        every = np.concatenate([priorities[group.name] for group in groups])
        self._order = owners[np.argsort(every, kind="stable")]

    @property
    def steps(self) -> int:
        """How many channels there are to go."""
        return len(self._order)

    def steps_until(self, holds: Callable[[Widths], bool]) -> int | None:
        """The fewest steps after which `holds`; None if it never does."""
        return first_that(lambda steps: holds(self.after(steps)), self.steps)

    def after(self, steps: int) -> Widths:
        """The widths when the first `steps` channels have gone, within the limits."""
        gone = np.bincount(self._order[:steps], minlength=len(self.groups))
        return {
            group.name: max(
                min(self.start[group.name], self.limits.rounded(group, self.start[group.name] - int(less))),
                self.least[group.name],
            )
            for group, less in zip(self.groups, gone, strict=True)
        }


def first_that(holds: Callable[[int], bool], highest: int) -> int | None:
    """The smallest number up to `highest` for which a monotone condition holds; None if there is none."""
    if not holds(highest):
        return None
    low, high = 0, highest
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
