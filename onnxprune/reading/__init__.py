"""Stage one: the model as read."""
