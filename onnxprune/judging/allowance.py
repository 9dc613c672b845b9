"""How much a pruned model may lose, and how sure one wants to be of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxprune.errors import UsageError

LOWEST_CONFIDENCE = 0.5
"""At and below it a bound would lie on the wrong side of the figure that was measured."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """
    A drop of at most `limit`, shown at `confidence`.

    Both are shares: a limit of 0.01 allows an accuracy of 98.6 % to fall to 97.6 %, and a confidence of 0.95 is wrong
    about a model that loses more in one of twenty runs at most.
    """

    limit: float
    confidence: float

    @property
    def risk(self) -> float:
        """How often a model that loses more may pass."""
        return 1 - self.confidence

    def __str__(self) -> str:
        return f"a drop of at most {self.limit:.6g} at a confidence of {self.confidence:.6g}"


def allowance(max_drop: float | str = 0.01, confidence: float | str = 0.95) -> Allowance:
    """
    Read what a user allows: shares such as "1%" or 0.01, "95%" or 0.95.

    Raises:
        UsageError: not a share, a drop that is not between 0 and 100 %, or a confidence that is not above 50 %.
    """
    limit, sure = parsed_share(max_drop), parsed_share(confidence)
    if limit is None or not 0 < limit < 1:
        raise UsageError(
            f"Expected for max-drop a share above 0% and below 100% such as 1% or 0.01, found {max_drop!r}."
        )
    if sure is None or not LOWEST_CONFIDENCE < sure < 1:
        raise UsageError(
            f"Expected for confidence a share above 50% and below 100% such as 95% or 0.95, found {confidence!r}."
        )
    return Allowance(limit, sure)


def parsed_share(value: float | str) -> float | None:
    """The share as a number; None if it is none."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
