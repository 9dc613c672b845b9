"""Last stage: what is told to people and programs."""
