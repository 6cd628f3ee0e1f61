"""``nbytes`` and the table that ``print(state)`` shows."""

import pytest
import torch
from support.cell_strategies import OPERATORS
from support.tiny_models import random_tokens, tiny_cell

from msrnn import H2O, TOVA, Full, Window
from msrnn.state.summary import nbytes

B, K, D = 2, 2, 6


def read(cell, T, reduction=None):
    return cell(random_tokens(1, B, T), cell.initial_state(B, reduction))[1]


def row_nbytes(n_stats=0, n_layers=2):
    """Bytes of one row of all heads and layers: key, value, position and statistics in 8 bytes each."""
    return n_layers * B * K * (2 * D + 1 + n_stats) * 8


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_nbytes_counts_the_storages_of_all_tensors(reduction):
    cell = tiny_cell()
    for T in (0, 2, 9):
        state = read(cell, T, reduction)
        S = T if reduction.size is None else min(T, reduction.size)
        row = row_nbytes(n_stats=1 if isinstance(reduction, H2O) else 0)
        assert state.clone().nbytes == S * row + B * 8
        assert S * row + B * 8 <= state.nbytes <= (S * 17 / 16 + 1) * row + B * 8  # with spare rows
        token = random_tokens(2, B, 1)[:, 0]
        for other in (
            state,
            cell.step(token, state)[1],
            cell.step_(token, state.clone())[1],
            state.select([1, 0]),
            state.clone(),
        ):
            storages = [x.untyped_storage() for H in other for x in [*H.rows.values(), H.clock]]
            assert other.nbytes == sum({x.data_ptr(): x.nbytes() for x in storages}.values())


@pytest.mark.parametrize("size", [16, 40])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", [Window, TOVA])
def test_full_bounded_state_holds_one_spare_row(kind, in_place, size):
    """From 16 rows on, a sixteenth is more than one row, but a full H never needs a second one."""
    cell = tiny_cell()
    state = cell.initial_state(B, kind(size))
    for token in random_tokens(1, B, size + 3).T:
        _, state = (cell.step_ if in_place else cell.step)(token, state)
    assert state[0].keys.shape[2] == size
    assert state.nbytes == (size + 1) * row_nbytes() + B * 8
    _, after_call = cell(random_tokens(2, B, size + 3), state)
    _, after_call = cell.step(torch.tensor([1, 2]), after_call)
    assert after_call.nbytes == (size + 1) * row_nbytes() + B * 8


@pytest.mark.parametrize("in_place", [False, True])
def test_statistics_of_a_full_state_have_no_spare_row(in_place):
    cell = tiny_cell()
    state = cell.initial_state(B, H2O(16))
    for token in random_tokens(1, B, 19).T:
        _, state = (cell.step_ if in_place else cell.step)(token, state)
    statistics = 16 * (row_nbytes(n_stats=1) - row_nbytes())
    assert state.nbytes == 17 * row_nbytes() + statistics + B * 8


def test_views_of_one_storage_count_once():
    state = read(tiny_cell(), 9, TOVA(4))
    assert nbytes([state[0], state[0]]) == nbytes([state[0]])


def test_table_shows_operator_rows_oldest_position_and_bytes():
    cell = tiny_cell(n_layers=3)
    text = repr(read(cell, 9, [Window(4), Window(4), Full()]).clone())  # a clone has no spare rows
    head, _, bounded, full = text.splitlines()
    assert "3 layers" in head
    assert "batch 2" in head
    assert "9 tokens" in head
    assert bounded.split()[:4] == ["0…1", "window:4", "4", "5"]  # layers, operator, rows, oldest
    assert full.split()[:4] == ["2", "full", "9", "0"]
    for line, layers, rows in ((bounded, 2, 4), (full, 1, 9)):
        count, unit = line.split()[4:]
        assert float(count) * {"B": 1, "kB": 1e3}[unit] == pytest.approx(rows * row_nbytes(n_layers=layers), rel=0.05)
    assert "tova:4" in repr(cell.initial_state(1, TOVA(4)))


def test_table_of_a_ragged_batch():
    cell = tiny_cell()
    _, ragged = cell(random_tokens(1, B, 5), lengths=torch.tensor([5, 0]))
    assert "0…5 tokens" in repr(ragged)
    _, later = cell(random_tokens(1, B, 9), cell.initial_state(B, Window(4)), lengths=torch.tensor([9, 3]))
    assert repr(later).splitlines()[2].split()[3] == "0"  # an empty row, at −1, is not the oldest


def test_table_of_an_empty_batch():
    assert "batch 0, no tokens read" in repr(read(tiny_cell(), 3).select([]))
