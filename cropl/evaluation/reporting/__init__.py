"""Reports of suites: one model under many arms on several benchmarks, beside the paper's own figures."""
