"""Eviction operators: frozen values that score the rows of the KV cache."""
