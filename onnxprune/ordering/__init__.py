"""In which order the channels of a group go: criteria, each a function by its name."""
