"""The cell: the public calls `step`, `step_`, `forward` and `scan`."""
