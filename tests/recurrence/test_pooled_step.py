"""Pooled rows against the loop over ``layer.step``, which pads and sorts the rows of each head."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import assert_unchanged, copy_tensors, draw_bools, examples
from support.head_budgets import per_head
from support.no_synchronization import NoSynchronization
from support.plain_loops import plain_loop
from support.tiny_families import tiny_family
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, tiny_cell

from msrnn import TOVA, SharedBudget, compact, load_state
from msrnn.recurrence.budget_evictions import lowest_of_layer
from msrnn.state.pooled_rows import PooledMultiState


def is_pooled(state):
    return any(isinstance(H, PooledMultiState) for H in state._held)


@given(st.data())
@examples(30)
def test_the_step_equals_the_plain_loop(data):
    heads, K = data.draw(st.sampled_from([(4, 2), (3, 3), (6, 2), (2, 1), (4, 4)]))
    cell = tiny_cell(seed=data.draw(st.integers(0, 99)), n_layers=2, n_heads=heads, n_kv_heads=K, head_dim=4)
    operator = data.draw(st.sampled_from(per_head(data.draw(st.integers(2, 5)))))
    reduction = SharedBudget(operator, floor=data.draw(st.sampled_from([0, 0.2, 0.5, 1])))
    dtype, T = data.draw(st.sampled_from([None, None, torch.int8])), data.draw(st.integers(0, 9))
    lengths = torch.tensor([T, data.draw(st.integers(0, T))])
    plain = cell(random_tokens(1, 2, T), cell.initial_state(2, reduction, dtype=dtype), lengths=lengths)[1]
    stacked, in_place = plain.clone(), data.draw(st.booleans())
    for token in random_tokens(2, 2, 9).T:
        active = draw_bools(data.draw, 2) if data.draw(st.booleans()) else None
        expected, plain = plain_loop(cell, token, plain, active)
        before = copy_tensors(stacked)
        logits, after = (cell.step_ if in_place else cell.step)(token, stacked, active=active)
        if not in_place:
            assert_unchanged(stacked, before)
        rows = slice(None) if active is None else active
        assert_close(logits[rows], expected[rows], 1e-10)
        assert_same(after, plain, 1e-10)
        stacked = after
    layers_differ, reads_rows = "random" in str(operator), operator.needs_keys or operator.needs_values
    assert is_pooled(stacked) != (layers_differ or reads_rows)


@given(st.data())
@examples(40)
def test_the_order_of_the_rows_of_a_layer_changes_no_eviction(data):
    """Scores and positions that are equal often: of equal positions the row of the first head is evicted."""
    K, S = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    operator = SharedBudget(TOVA(max(1, S - 1), per_head=True), floor=data.draw(st.sampled_from([0, 0.5, 1])))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    score = torch.randint(3, (2, K, S), generator=generator).double()
    positions = torch.stack([torch.randperm(S, generator=generator) for _ in range(2 * K)]).view(2, K, S)
    positions = positions.masked_fill(torch.rand(2, K, S, generator=generator) < 0.2, -1)
    order = torch.stack([torch.randperm(K * S, generator=generator) for _ in range(2)])
    row_heads = (torch.arange(K * S) // S).expand(2, -1)
    mixed = (x.gather(1, order) for x in (score.flatten(1), positions.flatten(1), row_heads))
    evicted = torch.zeros(2, K * S, dtype=torch.bool).scatter(1, order, lowest_of_layer(operator, *mixed, K))
    for b in range(2):
        rows = [(float(score[b, h, s]), int(positions[b, h, s]), h, s) for h in range(K) for s in range(S)]
        rows = sorted(row for row in rows if row[1] >= 0)
        counts = [sum(row[2] == h for row in rows) for h in range(K)]
        expected = set()
        for _ in range(min(K, sum(counts) - K * operator.size)):
            row = next(x for x in rows if x not in expected and counts[x[2]] > operator.floor_rows)
            expected.add(row)
            counts[row[2]] -= 1
        assert {(h, s) for _, _, h, s in expected} == {tuple(x) for x in evicted[b].view(K, S).nonzero().tolist()}


@pytest.mark.parametrize("T", [0, 20])
@pytest.mark.parametrize("reduction", ["all-layers:shared:floor=0:h2o:4", "all-layers:shared:tova-head:3"])
def test_learned_rows_are_the_first_of_each_head(reduction, T, tmp_path):
    """Rows of many tokens are stored head after head, so a step may write a row before the learned row of its head."""
    cell, text = tiny_family("granite_swa"), random_tokens(3, 2, T + 14)
    plain = stacked = cell(text[:, :T], cell.initial_state(2, reduction))[1]
    for token in text[:, T:].T:
        expected, plain = plain_loop(cell, token, plain)
        logits, stacked = cell.step(token, stacked)
        assert_close(logits, expected, 1e-10)
        assert_same(stacked, plain, 1e-10)
        assert all((H.positions[..., :1] == -2).all() for H in stacked)
    assert is_pooled(stacked)
    stacked.save(tmp_path / "state")
    assert_same(load_state(tmp_path / "state"), plain, 1e-10)
    newest = compact(stacked, 1, lambda _, H: H.positions)
    assert_same(newest, compact(plain, 1, lambda _, H: H.positions), 1e-10)
    assert all((H.positions[..., :1] == -2).all() for H in newest)


@pytest.mark.parametrize("name", ["keys", "values"])
def test_rows_of_one_head_that_are_not_finite_change_the_evictions_of_that_head_only(name):
    """In the layer itself. The next layer has no finite input in either path."""
    cell, text = tiny_cell(n_layers=1), random_tokens(4, 1, 12)
    state = cell(text[:, :9], cell.initial_state(1, "shared:tova-head:4"))[1]
    layers = [H.with_rows({**H.rows, name: H.rows[name].clone()}, H.clock) for H in state]
    layers[0].rows[name][:, 1, 0] = torch.nan
    plain = stacked = state.with_layers(layers)
    for token in text[:, 9:].T:
        _, plain = plain_loop(cell, token, plain)
        _, stacked = cell.step(token, stacked)
        assert is_pooled(stacked)
        assert retained_positions(stacked) == retained_positions(plain)


@pytest.mark.parametrize("T", [2, 9], ids=["growing", "full"])
def test_no_step_waits_for_the_device(T):
    cell = tiny_cell()
    state = cell(random_tokens(1, 2, T), cell.initial_state(2, "shared:h2o:4"))[1]
    token, some = random_tokens(2, 2, 1)[:, 0], torch.tensor([True, False])
    for active in (None, some):
        for in_place in (False, True):
            with NoSynchronization():  # ``cell.step`` checks ids, on the CPU only
                _, state = cell.step_layers(token, state, active, in_place)
            assert is_pooled(state)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_graph_that_begins_in_a_later_layer_is_recorded(first):
    cell, shift = tiny_cell(n_layers=3), torch.zeros(24, dtype=torch.float64, requires_grad=True)
    state, text = cell.initial_state(2, "shared:h2o:3"), random_tokens(1, 2, 8)
    for token in text.T[:7]:
        _, state = cell.step(token, state)
    expected, end = plain_loop(cell, text[:, 7], state)
    cell.layers[first].q.register_forward_hook(lambda _, __, out: out + shift)
    logits, after = cell.step(text[:, 7], state)
    assert_close(logits.detach(), expected, 1e-10)
    assert_same(after.detach(), end, 1e-10)
    logits.sum().backward()
    assert bool(shift.grad.abs().sum() > 0)
