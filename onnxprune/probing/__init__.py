"""Stage three: how much each channel matters."""
