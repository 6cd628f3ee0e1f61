"""Benchmarks of time and memory on this machine, compared with transformers and kvpress.

A section is a function ``(Bench) -> results``; ``sections.py`` lists all sections.
"""
