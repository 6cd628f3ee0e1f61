"""The positions that were evicted between two states are those of the trace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import cells, examples
from support.tiny_models import random_tokens, step_loop, tiny_cell

import msrnn


@given(st.data())
@examples(40)
def test_evicted_positions_are_those_of_the_trace(data):
    cell, B, reduction = data.draw(cells())
    T, read = data.draw(st.integers(0, 14)), data.draw(st.integers(0, 6))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    before = step_loop(cell, random_tokens(1, B, read), cell.initial_state(B, reduction))[1]
    _, trace = cell.scan(random_tokens(2, B, T), before, lengths=lengths)
    cut = data.draw(st.integers(0, T))
    for first, last in ((0, T), (0, cut), (cut, T)):
        found = trace.at(last).evicted_since(trace.at(first) if first else before)
        for layer, positions in zip(trace, found, strict=True):
            left = layer.left[:, :, first:last]
            assert positions.dtype == torch.int64
            for b in range(B):
                for k in range(left.shape[1]):
                    expected = sorted(left[b, k][left[b, k] >= 0].tolist())
                    row = positions[b, k].tolist()
                    assert row == expected + [-1] * (len(row) - len(expected))
            assert positions.shape[2] == (int((left >= 0).sum(-1).max()) if B else 0)


def test_a_step_that_evicts_nothing_has_no_columns():
    cell = tiny_cell()
    state = cell.initial_state(2, "tova:5")
    after = cell(random_tokens(0, 2, 4), state)[1]
    assert [x.shape for x in after.evicted_since(state)] == [(2, 2, 0)] * 2
    assert [x.shape for x in after.evicted_since(after)] == [(2, 2, 0)] * 2
    skipped = cell.step(torch.tensor([1, 2]), after, active=torch.tensor([False, False]))[1]
    assert [x.shape for x in skipped.evicted_since(after)] == [(2, 2, 0)] * 2


def test_states_that_do_not_follow_each_other_are_refused():
    cell, text = tiny_cell(), random_tokens(0, 2, 12)
    start = cell.initial_state(2, "tova:5")
    middle = cell(text[:, :8], start)[1]
    end = cell(text[:, 8:], middle)[1]
    with pytest.raises(msrnn.Error, match=r"the clocks are \[12, 12\] before and \[8, 8\] now"):
        middle.evicted_since(end)
    with pytest.raises(msrnn.Error, match="2 layers, 1 sequences and 2 layers, 2 sequences"):
        end.evicted_since(start.select([0]))
    window = cell(text[:, :8], cell.initial_state(2, "window:5"))[1]
    full = cell(text, cell.initial_state(2, "full"))[1]
    with pytest.raises(msrnn.Error, match="has rows that the earlier one lacks"):
        full.evicted_since(window)
