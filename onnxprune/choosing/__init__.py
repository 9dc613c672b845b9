"""Stage four: which channels stay."""
