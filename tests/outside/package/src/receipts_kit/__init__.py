"""Receipts for cropl: a model family, a pruning method and a benchmark."""
