"""H of one layer: shapes and dtypes, contents of the rows, the size as an upper bound, and appending a row."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import OPERATORS, cells, draw_bools, examples
from support.tiny_models import assert_close, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import H2O, Full, MultiState, Reduction


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_fields_have_the_documented_shapes_and_dtypes(reduction, dtype):
    cell = tiny_cell(dtype=dtype)
    for T in (0, 3, 9):
        _, state = cell(random_tokens(1, 2, T), cell.initial_state(2, reduction))
        S = T if reduction.size is None else min(T, reduction.size)
        for H in state:
            assert isinstance(H, MultiState)
            assert H.keys.shape == H.values.shape == (2, 2, S, 6)
            assert H.keys.dtype == H.values.dtype == dtype
            assert H.positions.shape == (2, 2, S)
            assert H.positions.dtype == torch.int64
            assert H.clock.tolist() == [T, T]
            assert H.reduction == reduction
            assert H.row_stats.keys() == ({"accumulated_attention"} if isinstance(reduction, H2O) else set())
            for stat in H.row_stats.values():
                assert stat.shape == (2, 2, S)
                assert stat.dtype == torch.promote_types(dtype, torch.float32)


def test_retained_row_keeps_its_value_and_the_key_rotated_at_its_position():
    cell, text = tiny_cell(), random_tokens(1, 1, 8)
    _, full = step_loop(cell, text, cell.initial_state(1, Full()))
    _, state = step_loop(cell, text, cell.initial_state(1, [H2O(3), Full()]))
    for k in range(2):  # the input of layer 0 is the embedding, so its rows equal those of the full state
        positions = state[0].positions[0, k]
        for name in ("keys", "values"):
            assert state[0].rows[name][0, k].equal(full[0].rows[name][0, k, positions])


def test_accumulated_attention_sums_to_one_per_query_without_evictions():
    cell = tiny_cell()
    _, state = step_loop(cell, random_tokens(1, 2, 7), cell.initial_state(2, H2O(16)))
    for H in state:
        assert_close(H.row_stats["accumulated_attention"].sum(-1), torch.full((2, 2), 7.0).double(), 1e-12)


# The size as an upper bound.


@given(st.data())
@examples(30)
def test_rows_grow_to_size_and_an_evicted_row_never_returns(data):
    cell, B, reduction = data.draw(cells())
    state = cell.initial_state(B, reduction)
    before = [[[set()] * cell.config.n_kv_heads] * B] * len(state)
    for t, token in enumerate(random_tokens(data.draw(st.integers(0, 99)), B, 12).T):
        state = cell.step(token, state)[1]
        now = retained_positions(state)
        for l, H in enumerate(state):
            size = H.reduction.size
            assert H.keys.shape[2] == (t + 1 if size is None else min(t + 1, size))  # g(t) of the paper
            for b in range(B):
                for k, positions in enumerate(now[l][b]):
                    assert len(positions) == len(set(positions)) == H.keys.shape[2]
                    assert set(positions) <= set(before[l][b][k]) | {t}
        before = now


@given(st.data())
@examples(20)
def test_ragged_rows_stay_within_size(data):
    cell, B, reduction = data.draw(cells())
    state = cell.initial_state(B, reduction)
    full = [False] * len(state)
    for token in random_tokens(1, B, 14).T:
        shapes = [H.keys.shape for H in state]
        state = cell.step(token, state, active=draw_bools(data.draw, B))[1]
        for l, H in enumerate(state):
            size, clock = H.reduction.size, H.clock.tolist()
            assert size is None or H.keys.shape[2] <= size
            assert not full[l] or H.keys.shape == shapes[l]
            full[l] = H.keys.shape[2] == size
            for b, heads in enumerate(retained_positions(state)[l]):
                assert {len(positions) for positions in heads} == {clock[b] if size is None else min(clock[b], size)}
                assert all(0 <= p < clock[b] for positions in heads for p in positions)


# Statistics of operators.


@dataclass(frozen=True)
class NarrowStats(Reduction):
    """An operator that returns statistics of shape ``(B, 1, R)`` in place of ``(B, K, R)``."""

    stat_names: ClassVar[tuple[str, ...]] = ("a",)

    def update(self, observation):
        return {"a": observation.weights.mean((1, 2))[:, None]}

    def score(self, observation):
        return observation.row_stats["a"]


def test_statistics_of_another_shape_or_with_a_reserved_name_are_refused():
    cell = tiny_cell()
    with pytest.raises(msrnn.Error, match=r"NarrowStats.update returns .*\(1, 1, 1\)"):
        cell.step(torch.tensor([1]), cell.initial_state(1, NarrowStats(4)))

    @dataclass(frozen=True)
    class ReservedName(Reduction):
        stat_names: ClassVar[tuple[str, ...]] = ("keys",)

    with pytest.raises(msrnn.Error, match="'keys'"):
        ReservedName(4)


# Order and selection of rows.


def layer(positions):
    """Return H with these positions ``(B, K, S)``. The first element of each key is the position of its row."""
    positions = torch.tensor(positions)
    keys = torch.stack((positions, torch.arange(positions.numel()).view(positions.shape)), dim=-1).double()
    return MultiState(
        keys, -keys, positions, torch.full((len(positions),), 10), H2O(4), {"accumulated_attention": keys[..., 0]}
    )


def assert_rows_belong_together(H):
    """Assert that key, value and statistic of each row are those of its position."""
    rows = H.positions >= 0
    for x in (H.keys[..., 0], -H.values[..., 0], H.row_stats["accumulated_attention"]):
        assert x[rows].equal(H.positions[rows].double())


def test_sorted_by_position_moves_empty_rows_to_the_end_and_drops_empty_columns():
    H = layer([[[5, -1, 2, 9], [-1, 1, -1, 7]]]).sorted_by_position()
    assert H.positions.tolist() == [[[2, 5, 9], [1, 7, -1]]]
    assert not H.no_empty_rows
    assert_rows_belong_together(H)
    H = layer([[[5, -1, 2], [-1, 1, 7]]]).sorted_by_position()
    assert H.positions.tolist() == [[[2, 5], [1, 7]]]
    assert H.no_empty_rows
    assert_rows_belong_together(H)
    assert H.sorted_by_position() is H
    H = layer([[[5, 9, 2], [1, 4, 7]]]).sorted_by_position()
    assert H.positions.tolist() == [[[2, 5, 9], [1, 4, 7]]]
    assert_rows_belong_together(H)


def test_keep_rows_keeps_the_rows_of_the_mask():
    H = layer([[[1, 3, 5, 7], [0, 2, 4, 6]]])
    even = torch.tensor([[[True, False, False, True], [False, True, True, False]]])
    kept = H.keep_rows(even, uniform=True)
    assert kept.positions.tolist() == [[[1, 7], [2, 4]]]
    assert kept.no_empty_rows
    assert_rows_belong_together(kept)
    ragged = torch.tensor([[[False, True, False, True], [True, True, True, False]]])
    kept = H.keep_rows(ragged, uniform=False)
    assert kept.positions.tolist() == [[[3, 7, -1], [0, 2, 4]]]
    assert not kept.no_empty_rows
    assert_rows_belong_together(kept)


def test_keep_rows_writes_into_the_given_storage():
    H = layer([[[1, 3, 5, 7], [0, 2, 4, 6]]])
    out = layer([[[0, 0], [0, 0]]])
    mask = torch.tensor([[[True, False, False, True]]])
    kept = H.keep_rows(mask, uniform=True, out=out)
    assert kept.keys.data_ptr() == out.keys.data_ptr()
    assert kept.positions.tolist() == [[[1, 7], [0, 6]]]
    assert_rows_belong_together(kept)


# Append.


def test_step_does_not_modify_rows_that_a_graph_has_saved():
    """A pure step writes into the spare rows of a buffer that shares its first rows with a saved graph."""
    cell = tiny_cell()
    _, state = cell(random_tokens(0, 1, 40), cell.initial_state(1, "full"))
    _, state = cell.step(random_tokens(1, 1, 1)[:, 0], state)  # now the buffer has spare rows
    gain = torch.randn(6, dtype=torch.float64, requires_grad=True)
    loss = (state[0].keys * gain).sum() + (state[0].values * gain).sum() + (state[0].positions * gain[0]).sum()
    cell.step(random_tokens(2, 1, 1)[:, 0], state)
    loss.backward()
    expected = (state[0].keys + state[0].values).sum((0, 1, 2))
    expected[0] += state[0].positions.sum()
    torch.testing.assert_close(gain.grad, expected, atol=1e-12, rtol=0)
