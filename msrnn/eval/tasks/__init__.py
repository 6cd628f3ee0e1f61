"""Generators of questions with known answers, each seeded and without a corpus. No module here calls a model."""
