"""Evictions of a block: wrong proposals, few calls of an operator, and evictions that layers share."""

from dataclasses import replace

import pytest
import torch
from support.operator_paths import assert_paths_agree
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell

import msrnn
from msrnn import Window
from msrnn.recurrence import block_evictions, shared_evictions, unroll
from msrnn.recurrence.block_fields import BlockFields


@pytest.mark.parametrize("reduction", ["tova:5", "h2o:6", "tova-head:5", "h2o-layer:6"])
def test_wrong_proposals_are_corrected(reduction, monkeypatch):
    """The worst proposal takes the candidates in reverse order. The result is the same after more iterations."""
    monkeypatch.setattr(block_evictions, "MIN_SETTLED_TOKENS", 0)  # never one call per token
    calls = []
    score_tokens = block_evictions.score_tokens
    monkeypatch.setattr(block_evictions, "score_tokens", lambda *a, **k: calls.append(1) or score_tokens(*a, **k))
    cell, text = tiny_cell(), random_tokens(5, 2, 40)
    assert_paths_agree(reduction, cell, text, None)
    few = len(calls)
    propose = block_evictions._propose_evictions
    monkeypatch.setattr(block_evictions, "_propose_evictions", lambda ranks, *a: propose(ranks.flip(-1), *a))
    assert_paths_agree(reduction, cell, text, None)
    assert len(calls) - few > 2 * few


@pytest.mark.parametrize("reduction", ["tova:5", "h2o:6", "tova-head:5", "keydiff:5"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 17])], ids=["equal", "ragged"])
def test_tokens_are_solved_one_by_one_after_iterations_that_settle_few(reduction, lengths, monkeypatch):
    solved = []
    by_token = block_evictions._solve_token_by_token
    monkeypatch.setattr(block_evictions, "_solve_token_by_token", lambda *a: solved.append(a[3]) or by_token(*a))
    propose = block_evictions._propose_evictions
    monkeypatch.setattr(block_evictions, "_propose_evictions", lambda ranks, *a: propose(ranks.flip(-1), *a))
    cell, text = tiny_cell(), random_tokens(5, 2, 40)
    assert_paths_agree(reduction, cell, text, lengths)
    assert solved
    assert all(0 < start < 40 for start in solved)


@pytest.mark.parametrize("reduction", ["keydiff:5", "vatp:6:2:1", "caote:5", "shared:keydiff:5"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 17])], ids=["equal", "ragged"])
def test_operators_that_read_many_keys_or_values_are_called_once_per_token(reduction, lengths, monkeypatch):
    """Here a block has fewer keys and values than the bound, so the bound is set to 0. Other tests have iterations."""
    monkeypatch.setattr(block_evictions, "MAX_COPIED_PER_TOKEN", 0)
    assert_paths_agree(reduction, tiny_cell(), random_tokens(5, 2, 40), lengths)


@pytest.mark.parametrize(
    ("reduction", "one_by_one"), [("keydiff:5", True), ("shared:vatp:8", True), ("tova:5", False), ("keydiff:40", False)]
)
def test_only_evictions_by_copied_rows_are_solved_one_by_one(reduction, one_by_one, monkeypatch):
    """TOVA reads no keys, and with 40 rows nothing is evicted."""
    cell, text, n_tokens, score_tokens = tiny_cell(), random_tokens(5, 2, 40), [], block_evictions.score_tokens
    _, state = cell(text[:, :8], cell.initial_state(2, reduction))
    for module in (block_evictions, shared_evictions):
        monkeypatch.setattr(module, "score_tokens", lambda *a, **k: n_tokens.append(a[2] - a[1]) or score_tokens(*a, **k))
    monkeypatch.setattr(block_evictions, "MAX_COPIED_PER_TOKEN", 0)
    cell(text[:, 8:], state)
    assert (set(n_tokens) == {1}) == one_by_one


def test_copied_elements_are_those_of_keys_and_values():
    keys, values = torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 6)
    assert BlockFields().copied_per_token == 0
    assert BlockFields(keys=keys).copied_per_token == 120
    assert BlockFields(keys=keys, values=values).copied_per_token == 300


def test_evictions_from_positions_are_shared_by_equal_layers(monkeypatch):
    """Layers with other positions or another operator compute their own evictions."""
    solved = []
    solve = unroll.solve_evictions
    monkeypatch.setattr(unroll, "solve_evictions", lambda block, *a: solved.append(block.reduction) or solve(block, *a))
    cell, text = tiny_cell(n_layers=4), random_tokens(5, 2, 20)
    assert_paths_agree("window:5", cell, text, None)
    assert len(solved) == 1
    assert_paths_agree("tova:5", cell, text, None)
    assert len(solved) == 1 + 4
    assert_paths_agree(Window((5, 5, 3, 3)), cell, text, None)
    assert len(solved) == 1 + 4 + 2
    mixed = [Window(5), msrnn.TOVA(5), Window(5), Window(3)]
    assert_paths_agree(mixed, cell, text, None)
    assert len(solved) == 1 + 4 + 2 + 3
    _, state = cell(text, cell.initial_state(2, mixed))
    other = [replace(H, reduction=Window(5)) for H in state]  # the second layer holds the rows that TOVA retained
    other[3] = state[3]
    state = state.with_layers(other)
    logits, after = cell(text, state)
    expected, end = step_loop(cell, text, state)
    assert_close(logits, expected, 1e-8)
    assert_same(after, end, 1e-8)


def test_one_call_scores_many_tokens():
    """A block of 64 tokens takes a few calls of the operator."""
    calls = []

    class Counting(msrnn.TOVA):
        depends_on_row_layout = depends_on_other_positions = False

        def score(self, seen):
            calls.append(len(seen.clock))
            return super().score(seen)

    cell = tiny_cell(n_layers=1)
    cell(random_tokens(5, 1, 64), cell.initial_state(1, Counting(40)))
    assert len(calls) < 12
    assert max(calls) == 64


@pytest.mark.parametrize("reduction", ["window:40", "sinks:40:4"])
def test_proposals_from_positions_are_right_for_all_layers(reduction, monkeypatch):
    """One call to propose and one to confirm, in the first layer only."""
    calls, score_tokens = [], block_evictions.score_tokens
    monkeypatch.setattr(block_evictions, "score_tokens", lambda *a, **k: calls.append(1) or score_tokens(*a, **k))
    cell = tiny_cell()
    cell(random_tokens(5, 1, unroll.WEIGHT_FREE_BLOCK), cell.initial_state(1, reduction))
    assert len(calls) == 2
