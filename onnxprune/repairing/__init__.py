"""Stage six: refit the layers that read what was pruned, on calibration data alone."""
