"""Generation: sampling, plain decoding, Jacobi and lookahead decoding, one-shot prefill eviction."""
