"""Stage five: the smaller model."""
