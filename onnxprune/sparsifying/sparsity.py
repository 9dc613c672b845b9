"""How many weights are to become zero: a share of all of them, or so many of every few."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxprune.errors import UsageError

LARGEST_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Sparsity:
    """
    What `--weights` asks for.

    Without a `pattern`, `share` of the weights of all layers together become zero. A pattern (n, m) keeps at most n of
    every m weights that follow each other along the axis that a layer sums over; `share` is then 1 - n / m.
    """

    share: float
    pattern: tuple[int, int] | None = None

    def __str__(self) -> str:
        return "{}:{}".format(*self.pattern) if self.pattern else f"{self.share:.4g}"


def sparsity(wanted: str | float | Sparsity) -> Sparsity:
    """
    Read "50%" or 0.5 as a share of all weights, "2:4" as a pattern.

    Raises:
        UsageError: neither, or all weights would go.
    """
    if isinstance(wanted, Sparsity):
        return wanted
    found = pattern_in(wanted) if ":" in str(wanted) else share_in(wanted)
    if found is None:
        raise UsageError(
            "Expected for weights a share from 0% to below 100% such as 50% or 0.5, or a pattern such as 2:4 (of every "
            f"4 weights at most 2 stay; blocks of up to {LARGEST_BLOCK}), found {wanted!r}. Give one of these."
        )
    return found


def pattern_in(text: object) -> Sparsity | None:
    matched = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(text))
    if matched is None:
        return None
    stay, block = int(matched[1]), int(matched[2])
    return Sparsity(1 - stay / block, (stay, block)) if 0 < stay < block <= LARGEST_BLOCK else None


def share_in(text: object) -> Sparsity | None:
    matched = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%?)\s*", str(text))
    if matched is None:
        return None
    share = float(matched[1]) / (100 if matched[2] else 1)
    return Sparsity(share) if share < 1 else None
