"""Layers and functions without state: linear maps, norms, positions, attention."""
