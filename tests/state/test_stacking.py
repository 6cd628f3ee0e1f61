"""Several H as one: layers stacked and unstacked, stacked with fewer rows, and batches concatenated."""

import pytest
import torch
from support.tiny_models import assert_same, random_tokens, tiny_cell

from msrnn import H2O, TOVA, Full, Window
from msrnn.reductions.contract import EMPTY
from msrnn.state.row_buffer import spare_rows
from msrnn.state.stacking import can_stack, concat_batches, stack, stack_and_keep, unstack

CELL = tiny_cell(n_layers=3)


def layers(reduction, T=9):
    _, state = CELL(random_tokens(1, 2, T), CELL.initial_state(2, reduction))
    return [H.sorted_by_position() for H in state]


def assert_rows_equal(H, expected):
    assert H.rows.keys() == expected.rows.keys()
    for name, x in H.rows.items():
        assert x.equal(expected.rows[name]), name


@pytest.mark.parametrize("reduction", [TOVA(4), H2O(4), Window(4), H2O(16)], ids=str)
def test_unstack_undoes_stack(reduction):
    before = layers(reduction)
    stacked = stack(before)
    S = before[0].keys.shape[2]
    assert stacked.keys.shape == (6, 2, S, 6)
    assert stacked.buffer.rows["keys"].shape[2] == S + 1  # one spare row, for the next token
    after = unstack(stacked, 3)
    assert len(after) == 3
    for H, expected in zip(after, before, strict=True):
        assert_rows_equal(H, expected)
        assert H.clock.equal(expected.clock)
        assert H.no_empty_rows == expected.no_empty_rows
        assert H.keys.data_ptr() != expected.keys.data_ptr()


def test_layers_that_differ_or_are_unbounded_cannot_be_stacked():
    assert can_stack(layers(TOVA(4)))
    assert stack(layers(Full())) is None
    assert not can_stack(layers([TOVA(4), TOVA(4), Window(4)]))
    assert not can_stack(layers([TOVA(4), TOVA(4), TOVA(3)]))
    assert not can_stack([*layers(TOVA(4), T=3)[:2], layers(TOVA(4), T=2)[2]])


@pytest.mark.parametrize("reduction", [TOVA(24), H2O(24)], ids=str)
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("n", [5, 24])
def test_stack_and_keep_equals_keep_rows_and_stack(reduction, heads, n):
    before = layers(reduction, T=30)
    S = before[0].keys.shape[2]
    order = torch.rand(3, 2, heads, S, generator=torch.Generator().manual_seed(0)).argsort(-1)
    mask = order < n
    expected = stack([H.keep_rows(m, uniform=True) for H, m in zip(before, mask, strict=True)])
    found = stack_and_keep(before, mask)
    assert_rows_equal(found, expected)
    assert found.no_empty_rows
    assert found.clock is before[0].clock
    assert found.buffer.rows["keys"].shape == expected.buffer.rows["keys"].shape
    assert [x.buffer.rows["keys"].shape[2] for x in (found, expected)] == [n + spare_rows(n, found.capacity)] * 2


@pytest.mark.parametrize("reduction", [Full(), H2O(4)], ids=str)
def test_concat_batches_pads_with_empty_rows(reduction):
    longer, shorter = layers(reduction, T=9)[0], layers(reduction, T=3)[0]
    S, n = longer.keys.shape[2], shorter.keys.shape[2]
    both = concat_batches([longer, shorter])
    assert both.clock.tolist() == [9, 9, 3, 3]
    assert not both.no_empty_rows
    assert both.keys.shape == (4, 2, S, 6)
    assert (both.positions[2:, :, n:] == EMPTY).all()
    assert_rows_equal(both.select(torch.tensor([0, 1])), longer)
    assert_rows_equal(both.select(torch.tensor([2, 3])).sorted_by_position(), shorter)
    assert concat_batches([longer, longer]).no_empty_rows


def test_stacked_state_equals_its_layers():
    state = CELL.initial_state(2, TOVA(4)).with_layers(layers(TOVA(4)))
    stacked, copied = state.stacked()
    assert copied
    again = state.from_stacked(stacked)
    assert again.stacked() == (stacked, False)
    assert_same(again, state)
