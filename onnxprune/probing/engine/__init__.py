"""Answers questions about the loss at little cost: cuts, the parts of the graph, and the processes that run them."""
