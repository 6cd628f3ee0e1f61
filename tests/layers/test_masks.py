"""Masks against their definitions, and against what a cell sees."""

import pytest
import torch
from support.tiny_models import tiny_cell, tokens

import msrnn
from msrnn.layers.masks import padding_mask, picture, subsequent_mask, window_mask


def seen(reduction, T):
    """``(T, T)``: which positions each token of a text sees in a cell of one layer: what was held before it, and itself."""
    cell, text = tiny_cell(n_layers=1), tokens(0, 1, T)
    state, rows = cell.initial_state(1, reduction), torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        rows[t, [*state[0].positions[0, 0].tolist(), t]] = True
        _, state = cell.step(text[:, t], state)
    return rows


def test_the_subsequent_mask_is_what_a_full_cell_sees():
    assert subsequent_mask(7).equal(seen("full", 7))


@pytest.mark.parametrize("window", [1, 3, 9])
def test_a_window_that_looks_back_is_what_a_cell_of_one_row_less_sees(window):
    assert (window_mask(7, window) & subsequent_mask(7)).equal(seen(msrnn.Window(window - 1), 7))


def test_windows_look_to_both_sides():
    assert window_mask(6, 2).tolist() == [[abs(t - s) < 2 for s in range(6)] for t in range(6)]


def test_padding_is_nobodys():
    found = padding_mask(torch.tensor([3, 0, 4]), 4)
    assert found.shape == (3, 1, 4)
    assert found[:, 0].tolist() == [[s < n for s in range(4)] for n in (3, 0, 4)]


def test_masks_are_made_where_they_are_to_be():
    meta = torch.device("meta")
    assert subsequent_mask(3, device=meta).is_meta
    assert window_mask(3, 2, device=meta).is_meta


def test_pictures():
    assert picture(subsequent_mask(3)) == "■ · ·\n■ ■ ·\n■ ■ ■"


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: subsequent_mask(-1), "T is -1"),
        (lambda: subsequent_mask(2.0), r"T is 2\.0"),
        (lambda: window_mask(4, 0), "window is 0"),
        (lambda: padding_mask(torch.tensor([5]), 4), r"lengths are \[5\]; expected 0 to 4"),
        (lambda: padding_mask(torch.tensor([1.0]), 4), "lengths are"),
        (lambda: picture(torch.ones(2, 2)), "expected bool"),
    ],
)
def test_what_is_no_mask_is_refused(refused, words):
    with pytest.raises(msrnn.Error, match=words):
        refused()
