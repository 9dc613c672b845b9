"""Stage six: the proof that removal equals zeroing, and measurements of both models."""
