"""Other libraries that the benchmarks compare with."""
