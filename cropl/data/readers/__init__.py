"""Readers: one published format per file, each a `Reader` that yields annotations."""
