"""
Find the smallest model whose drop is shown to be small enough, without wearing out the data that show it.

A bound at 95 % is wrong about a bad model one time in twenty. Who looks at many models and keeps the smallest that
passes is wrong far more often. Bisection is such a search, and dividing the risk among its eight looks needs half as
many samples again. So the looking around is done elsewhere::

    share of the MACs   100 %         75          55    47 43       29                  5
    rehearsal (bisection, on the data of pruning)  ✓     ✓ ✗          ✗
    judging (held-out data)  ✓ ────── ✓ ───────── ✓ ─── ✗ stop: 55 % it is

*Rehearsal.* A bisection on the samples that pruning used asks which share would about pass. Those samples flatter the
model that was fitted to them, but nothing is claimed from them: they only say which models are worth a look.

*Judging.* From large to small, each model is judged at the full confidence on samples that neither pruning nor the
rehearsal has seen, and the first that fails ends it. This is a test in fixed sequence (Maurer, Hothorn and Lehmacher
1995), which needs no correction: whatever the models, to end on one that loses too much, the first such model of the
sequence has to pass, and that happens with a chance of at most the risk. It matters neither how many models there are,
nor whether smaller ones always lose more, only that what the samples say never decides which model comes next.

The steps towards the share of the rehearsal halve the distance to it, or nearly so where a model is there already. What
their size costs is therefore about as much as the rehearsal was wrong by, or less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from onnxprune.errors import TargetError
from onnxprune.judging.allowance import Allowance
from onnxprune.judging.intervals import Drop

Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]

FLOOR = 0.05
"""The smallest share of the MACs that is looked at."""

RESOLUTION = 0.02
"""Between shares that are looked at, at least where it is decided."""

SLIGHT = 0.95
"""The first share that is judged: if not even so little may go, nothing may."""


@dataclass(frozen=True, slots=True)
class Trial:
    """
    One model that was looked at.

    `share` is the share of the MACs that was asked for. `expected` is about the bound that the rehearsal foretold; None
    where nothing was rehearsed, or no model of that share exists. `drop` is what was judged, None where nothing was.
    """

    share: float
    expected: float | None
    drop: Drop | None
    accepted: bool


@dataclass(frozen=True)
class Found(Generic[Item]):
    """The smallest model that was accepted, with what was found about it, and all trials from large to small."""

    share: float
    item: Item
    drop: Drop
    trials: tuple[Trial, ...]


@dataclass
class Tries(Generic[Item]):
    """The models made so far, by share, and what was found about them; None in place of a model that cannot be."""

    pruned_to: Callable[[float], Item]
    progress: Progress | None
    items: dict[float, Item | None] = field(default_factory=dict)
    expected: dict[float, float] = field(default_factory=dict)
    drops: dict[float, Drop] = field(default_factory=dict)

    def item(self, share: float) -> Item | None:
        """The model of this share, made once."""
        if share not in self.items:
            if self.progress:
                self.progress(f"try {share:.1%} of the MACs", len(self.items), 0)
            try:
                self.items[share] = self.pruned_to(share)
            except TargetError:
                self.items[share] = None
        return self.items[share]

    def trials(self, allowed: Allowance, accepted: float) -> tuple[Trial, ...]:
        """Everything that was tried, from large to small; shares down to the accepted one are accepted."""
        shares = sorted(self.items, reverse=True)
        return tuple(
            Trial(share, self.expected.get(share), self.drops.get(share), share in self.drops and share >= accepted)
            for share in shares
        )


def smallest(
    pruned_to: Callable[[float], Item],
    rehearse: Callable[[Item], float],
    judge: Callable[[Item], Drop],
    allowed: Allowance,
    *,
    floor: float = FLOOR,
    resolution: float = RESOLUTION,
    progress: Progress | None = None,
) -> Found[Item]:
    """
    The smallest model whose drop is within what is allowed, at its confidence.

    About six models are made for the rehearsal and one to five more to judge.

    Args:
        pruned_to: makes the model of a share of the MACs, whatever stands for it; it raises TargetError where there is
            none. Called once for each share. It must know nothing of the samples that `judge` uses.
        rehearse: about the bound that is to be expected of a model, from the samples that pruning used.
        judge: its drop on samples that nothing else used.
        allowed: the limit of the drop, and the confidence of `judge`.
        floor: the smallest share to look at.
        resolution: of the share.
        progress: called as `progress(what, done, 0)`.

    Raises:
        TargetError: not even the largest model that was judged is within the limit, or there are no models at all.
    """
    tries = Tries(pruned_to, progress)
    reached = rehearsed(tries, rehearse, allowed, floor, resolution)
    accepted, share = 1.0, next_share(1.0, reached, tries.expected, resolution)
    while share is not None:
        item = tries.item(share)
        if item is not None:
            tries.drops[share] = judge(item)
            if not tries.drops[share].upper <= allowed.limit:
                break
            accepted = share
        share = next_share(share, reached, tries.expected, resolution)
    trials = tries.trials(allowed, accepted)
    best = tries.items.get(accepted)
    if best is None:
        raise TargetError(nothing_found(trials, allowed))
    return Found(accepted, best, tries.drops[accepted], trials)


def rehearsed(
    tries: Tries[Item], rehearse: Callable[[Item], float], allowed: Allowance, floor: float, resolution: float
) -> float:
    """The smallest share that is expected to pass, by bisection; 1 if none is."""
    fails, passes = floor, 1.0
    while passes - fails > resolution:
        share = (passes + fails) / 2
        item = tries.item(share)
        if item is not None:
            tries.expected[share] = rehearse(item)
        fails, passes = (fails, share) if tries.expected.get(share, 2.0) <= allowed.limit else (share, passes)
    return passes


def next_share(share: float, reached: float, known: dict[float, float], resolution: float) -> float | None:
    """
    The share to judge after this one passed; None if there is none left.

    Half the way to what the rehearsal reached, or the lowest rehearsed share up to a quarter of the way before that;
    and from there on, what the rehearsal did not expect to pass, from large to small.
    """
    if share <= reached:
        return max((other for other in known if other < share), default=None)
    half = max(reached, min((share + reached) / 2, share - resolution))
    if share == 1.0:
        return max(SLIGHT, reached) if half < SLIGHT else half
    return min((other for other in known if half <= other <= (half + share) / 2), default=half)


def nothing_found(trials: tuple[Trial, ...], allowed: Allowance) -> str:
    """What was tried, and what to do."""
    judged = [trial for trial in trials if trial.drop is not None]
    if not judged:
        return (
            f"Expected models of less than all MACs to judge, found that none of {len(trials)} shares from "
            f"{trials[-1].share:.1%} to {trials[0].share:.1%} can be had. Allow more groups with --only and --skip, or "
            "see what is frozen: `onnxprune inspect`."
        )
    listed = "".join(f"\n  - {described(trial)}" for trial in judged)
    return (
        f"Expected a pruned model with {allowed}, found none among those that were judged:{listed}\n"
        "Allow more with --max-drop, judge on more samples with --eval-data, or lower --confidence."
    )


def described(trial: Trial) -> str:
    """What was found of a model, in a line."""
    assert trial.drop is not None
    return (
        f"{trial.share:.1%} of the MACs: a drop of {trial.drop.mean:.4g} on {trial.drop.samples:,} samples, "
        f"which may be up to {trial.drop.upper:.4g}"
    )
