"""Layers and functions without state: linear maps, norms, position encodings, attention."""
