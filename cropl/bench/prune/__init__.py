"""The speed of pruned prefills and answers against dense ones, beside what their FLOPs allow: `cropl bench prune`."""
