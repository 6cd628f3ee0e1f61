"""Measurements and checks of a state: retained positions, invariants, long runs, and operators side by side."""
