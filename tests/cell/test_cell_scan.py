"""``Cell.scan``: logits that are not computed on request, and traces of states with empty rows or with spare rows.

``tests/recurrence/test_trace.py`` compares traces with the step loop.
"""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell


@pytest.mark.parametrize("reduction", ["full", "tova:4"])
def test_scan_without_logits_returns_the_same_trace(reduction, monkeypatch):
    cell, text, lengths = tiny_cell(), random_tokens(3, 2, 12), torch.tensor([12, 5])
    expected, trace = cell.scan(text, cell.initial_state(2, reduction), lengths=lengths, weights=True)

    def refuse(x):
        raise AssertionError("the LM head is computed")

    monkeypatch.setattr(cell, "compute_logits", refuse)
    logits, same = cell.scan(text, cell.initial_state(2, reduction), lengths=lengths, weights=True, logits=False)
    assert expected.shape == (2, 12, 50)
    assert logits.shape == (2, 12, 0)
    assert logits.dtype == expected.dtype
    for layer, other in zip(trace, same, strict=True):
        assert layer.left.equal(other.left)
        assert_close(layer.scores, other.scores, 0)
    for n in (0, 5, 12):
        assert_same(same.at(n), trace.at(n))


@pytest.mark.parametrize("reduction", ["tova:12", "h2o:200", "window:12"])
def test_trace_from_a_state_with_an_empty_first_row(reduction):
    cell, text = tiny_cell(), random_tokens(4, 2, 90)
    _, state = cell.step(torch.tensor([3, 4]), cell.initial_state(2, reduction), active=torch.tensor([True, False]))
    for token in text[:, :4].T:
        _, state = cell.step(token, state)
    _, trace = cell.scan(text[:, 4:], state)
    assert_same(trace.at(70), cell(text[:, 4:74], state)[1], 1e-8)


@pytest.mark.parametrize("reduction", ["tova:34", "h2o:34", "cam:34"])
def test_trace_is_unchanged_by_steps_in_place_on_its_first_state(reduction):
    cell, text = tiny_cell(), random_tokens(5, 1, 120)
    _, state = cell(text[:, :32], cell.initial_state(1, reduction))
    _, state = cell.step_(text[:, 32], state)
    before = state.clone()
    (_, trace), (_, empty_trace) = cell.scan(text[:, 33:113], state), cell.scan(text[:, :0], state)
    for token in text[:, 113:117].T:
        cell.step_(token, state)
    assert_same(trace.at(75), cell(text[:, 33:108], before)[1], 1e-8)
    assert_same(empty_trace.at(0), before, 1e-8)
