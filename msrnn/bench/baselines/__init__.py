"""The libraries that the benchmark compares with."""
