"""The paper's benchmarks: their questions, and their official scores."""
