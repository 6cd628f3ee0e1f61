"""Retention, comparison of operators, invariants, and long runs of a bounded state."""
