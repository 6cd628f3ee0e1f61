"""Captured steps compared with ``step_``."""

import torch
from support.cell_strategies import assert_unchanged, copy_tensors
from support.tiny_models import assert_close, assert_same, random_tokens


def assert_captured_steps_equal_steps(cell, state):
    """Compare twelve captured steps of a full state, B = 2, with ``step_``, with and without ``active``."""
    expected_state, before = state.clone(), copy_tensors(state)
    captured = cell.capture(state)
    assert_same(captured.state, state)
    for t, token in enumerate(random_tokens(1, 2, 12).T):
        active = [None, None, torch.tensor([True, False]), torch.tensor([False, True]), torch.tensor([False, False])][t % 5]
        expected, expected_state = cell.step_(token, expected_state, active=active)
        logits, after = captured(token, active=active)
        rows = slice(None) if active is None else active
        assert_close(logits[rows], expected[rows], 0)
        assert_same(after, expected_state)
        assert after is captured.state
    assert_unchanged(state, before)
