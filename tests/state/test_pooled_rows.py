"""Pooled rows: what a state under a shared budget holds after a step, and its copies."""

import pickle

import pytest
import torch
from support.tiny_models import assert_same, random_tokens, tiny_cell

import msrnn
from msrnn.state.pooled_rows import PooledMultiState, stack_pooled

K, D = 3, 6


def read_by_steps(spec, n=5, T=11, dtype=None):
    """Return a cell, the state after T tokens of a ragged batch, and the state after n more steps."""
    cell = tiny_cell(n_layers=2, n_heads=K, n_kv_heads=K, head_dim=D)
    _, start = cell(random_tokens(1, 2, T), cell.initial_state(2, spec, dtype=dtype), lengths=torch.tensor([T, 2]))
    state = start
    for token in random_tokens(2, 2, n).T:
        _, state = cell.step(token, state)
    return cell, start, state


@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_state_holds_its_budget_and_one_spare_row_per_head(in_place):
    cell, _, state = read_by_steps("shared:floor=0:h2o:4")
    row = 2 * D * 8 + 8 + 8  # key, value, position and head
    for token in random_tokens(3, 2, 9).T:
        _, state = (cell.step_ if in_place else cell.step)(token, state)
        (part,) = state._held
        assert isinstance(part, PooledMultiState)
        assert state.nbytes == 2 * 2 * ((K * 4 + K) * row + K * 4 * 8) + state.clock.nbytes  # a statistic without spare rows
    counts = {tuple(n) for H in state for n in (H.positions >= 0).sum(-1).tolist()}
    assert {sum(n) for n in counts} == {K * 4}
    assert any(len(set(n)) > 1 for n in counts), "else no head would hold more than another"


def test_a_growing_state_has_few_spare_rows():
    cell = tiny_cell(n_layers=2, n_heads=K, n_kv_heads=K, head_dim=D)
    state = cell.initial_state(1, "shared:tova-head:100")
    for n, token in enumerate(random_tokens(3, 1, 60).T, 1):
        _, state = cell.step_(token, state)
        rows = (state.nbytes - state.clock.nbytes) / 2 / (2 * D * 8 + 8 + 8)
        assert K * n <= rows <= K * n + K + K * n / 16
    assert {int((H.positions >= 0).sum()) for H in state} == {K * 60}


@pytest.mark.parametrize("spec", ["shared:floor=0:h2o:4", "shared:tova-head:4", "shared:last-queries:6:2"])
@pytest.mark.parametrize("dtype", [None, torch.int8])
def test_copies_batches_and_files(spec, dtype, tmp_path):
    cell, start, state = read_by_steps(spec, dtype=dtype)
    assert isinstance(state._held[0], PooledMultiState)
    state.save(tmp_path / "state")
    copies = [
        *(state.clone(), state.detach(), pickle.loads(pickle.dumps(state)), state.map(torch.clone), state.to("cpu")),
        *(state.sorted_by_position(), state.select([1, 0]).select([1, 0]), msrnn.load_state(tmp_path / "state")),
        msrnn.State.cat([state.select([0]), state.select([1])]),
    ]
    token = random_tokens(7, 2, 1)[:, 0]
    _, end = cell.step(token, state)
    for copy in copies:
        assert_same(copy, state)
        assert_same(cell.step_(token, copy)[1], end, 1e-12)
    assert str(state).splitlines()[1:] == str(state.map(torch.clone)).splitlines()[1:]
    for H, evicted in zip(state, state.evicted_since(start), strict=True):
        for kept, gone in zip(H.positions[1].tolist(), evicted[1].tolist(), strict=True):
            assert sorted(x for x in (*kept, *gone) if x >= 0) == [*range(7)]


@pytest.mark.parametrize(
    "spec", ["shared:keydiff:4", "shared:caote:4", ["shared:tova-head:4", "shared:tova-head:5"], "tova-head:4"]
)
def test_operators_that_read_rows_and_layers_that_differ_are_not_pooled(spec):
    _, _, state = read_by_steps(spec)
    assert stack_pooled(state._unstack()) is None
    assert not any(isinstance(H, PooledMultiState) for H in state._held)
