"""Generation: sampling, one-shot prefill eviction, Jacobi and lookahead decoding."""
