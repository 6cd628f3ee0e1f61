"""Bytes of bounded and unbounded states."""

import torch
from support.tiny_models import tiny_cell

from msrnn.diagnostics.state_memory import full_nbytes, memory_summary, token_bytes

CELL, TOKENS = tiny_cell(), torch.arange(24).view(2, 12)


def test_full_nbytes_are_those_of_an_unbounded_state():
    _, full = CELL(TOKENS)
    _, bounded = CELL(TOKENS, CELL.initial_state(2, "window:3"))
    assert full_nbytes(bounded) == full_nbytes(full) == full.clone().nbytes


def test_token_bytes_are_the_growth_of_an_unbounded_state():
    _, short = CELL(TOKENS[:1, :5])
    _, long = CELL(TOKENS[:1, :6])
    assert token_bytes(short) == long.clone().nbytes - short.clone().nbytes


def test_memory_summary_mentions_an_unbounded_state_only_if_it_is_larger():
    _, full = CELL(TOKENS)
    _, bounded = CELL(TOKENS, CELL.initial_state(2, "window:3"))
    assert memory_summary(full.clone(), CELL) == f"H holds {full.clone().nbytes / 1e6:.2f} MB"
    assert memory_summary(bounded, CELL).endswith(f"; an unbounded H would hold {full_nbytes(full) / 1e6:.2f} MB")
