"""Tests of masks against their definitions and against the rows that a cell sees."""

import pytest
import torch
from support.tiny_models import random_tokens, tiny_cell

import msrnn
from msrnn.layers.masks import format_mask, padding_mask, subsequent_mask, window_mask


def visible_in_cell(reduction, T):
    """Return ``(T, T)``: the positions that each token sees in a cell of one layer, its own included."""
    cell, text = tiny_cell(n_layers=1), random_tokens(0, 1, T)
    state, rows = cell.initial_state(1, reduction), torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        rows[t, [*state[0].positions[0, 0].tolist(), t]] = True
        _, state = cell.step(text[:, t], state)
    return rows


def test_subsequent_mask_equals_the_rows_under_full():
    assert subsequent_mask(7).equal(visible_in_cell("full", 7))


@pytest.mark.parametrize("window", [1, 3, 9])
def test_causal_window_mask_equals_the_rows_under_window(window):
    assert (window_mask(7, window) & subsequent_mask(7)).equal(visible_in_cell(msrnn.Window(window - 1), 7))


def test_window_mask_has_both_sides():
    assert window_mask(6, 2).tolist() == [[abs(t - s) < 2 for s in range(6)] for t in range(6)]


def test_padding_mask_hides_padding():
    found = padding_mask(torch.tensor([3, 0, 4]), 4)
    assert found.shape == (3, 1, 4)
    assert found[:, 0].tolist() == [[s < n for s in range(4)] for n in (3, 0, 4)]


def test_masks_are_created_on_the_device():
    meta = torch.device("meta")
    assert subsequent_mask(3, device=meta).is_meta
    assert window_mask(3, 2, device=meta).is_meta


def test_format_mask():
    assert format_mask(subsequent_mask(3)) == "■ · ·\n■ ■ ·\n■ ■ ■"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: subsequent_mask(-1), "T is -1"),
        (lambda: subsequent_mask(2.0), r"T is 2\.0"),
        (lambda: window_mask(4, 0), "window is 0"),
        (lambda: padding_mask(torch.tensor([5]), 4), r"lengths are \[5\]; expected 0 to 4"),
        (lambda: padding_mask(torch.tensor([1.0]), 4), "lengths are"),
        (lambda: format_mask(torch.ones(2, 2)), "expected bool"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(msrnn.Error, match=message):
        call()
