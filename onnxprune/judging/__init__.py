"""Stage seven: judge what a pruned model still does, on data that pruning did not use."""
