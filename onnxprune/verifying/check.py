"""What a check of a model found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked, what was found, and whether it holds."""

    name: str
    passed: bool
    detail: str
