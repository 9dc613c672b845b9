"""Stage two: which channels must go together, what is frozen, what everything costs."""
