"""The state as a value: layers by index, copies in other dtypes, selected rows, branches and undo."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import OPERATORS, cells, examples
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell

import msrnn
from msrnn import H2O, TOVA


def read(cell, T, reduction=None, B=2):
    return cell(random_tokens(1, B, T), cell.initial_state(B, reduction))[1]


def storages(state):
    return {x.data_ptr() for H in state for x in [*H.rows.values(), H.clock]}


def test_layers_are_reached_by_index_and_by_iteration():
    state = read(tiny_cell(), 9)
    assert len(state) == 2
    assert [H is state[l] for l, H in enumerate(state)] == [True, True]
    assert state.clock.dtype == torch.int64
    assert state.clock.tolist() == [9, 9]


@given(st.data())
@examples(20)
def test_selected_rows_continue_as_they_would_have(data):
    cell, B, reduction = data.draw(cells())
    _, state = cell(random_tokens(1, B, 12), cell.initial_state(B, reduction), lengths=12 - torch.arange(B) * 3)
    rows = data.draw(st.lists(st.integers(-B, B - 1), min_size=1, max_size=5))
    more = random_tokens(2, B, 4)
    expected, _ = step_loop(cell, more, state)
    for selected in (state.select(rows), state.select(torch.tensor(rows))):
        for i, b in enumerate(rows):
            assert_same(selected.select([i]), state.select([b]))
        logits, _ = step_loop(cell, more[rows], selected)
        assert_close(logits, expected[rows])
    part = slice(data.draw(st.integers(-B, B)), None, data.draw(st.integers(1, 2)))
    assert state.select(part).clock.tolist() == state.clock[part].tolist()
    assert_same(state.select(part), state.select(list(range(B))[part]))


@given(st.data())
@examples(15)
def test_branch_and_undo_after_evictions(data):
    cell, B, reduction = data.draw(cells())
    prompt, one, other = random_tokens(1, B, 10), random_tokens(2, B, 5), random_tokens(3, B, 5)
    _, state = cell(prompt, cell.initial_state(B, reduction))
    for continuation in (one, other, one):  # all from the same state
        logits, end = step_loop(cell, continuation, state)
        expected, after = cell(torch.cat((prompt, continuation), 1), cell.initial_state(B, reduction))
        assert_close(logits, expected[:, 10:], 1e-8)
        assert_same(end, after, 1e-8)


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_to_changes_floats_only_and_keeps_statistics_in_float32(reduction):
    state = read(tiny_cell(), 9, reduction)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        moved = state.to(dtype)
        for H in moved:
            assert H.keys.dtype == H.values.dtype == dtype
            assert H.positions.dtype == H.clock.dtype == torch.int64
            assert all(x.dtype == torch.promote_types(dtype, torch.float32) for x in H.row_stats.values())
        assert moved.clock.tolist() == [9, 9]
    assert_same(state.to(torch.float32).to(torch.float64), state, 1e-5)
    assert all(x.device.type == "meta" for H in state.to("meta") for x in [*H.rows.values(), H.clock])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_in_place_on_a_state_of_another_dtype_leave_its_source_unchanged(dtype):
    state, other = read(tiny_cell(), 9, H2O(4)), tiny_cell(dtype=dtype)
    before, moved = state.clone(), state.to(dtype)
    for token in random_tokens(2, 2, 6).T:
        other.step_(token, moved)
    assert_same(state, before)


@pytest.mark.parametrize("reduction", OPERATORS, ids=str)
def test_state_continues_in_another_dtype(reduction):
    double, single = tiny_cell(), tiny_cell(dtype=torch.float32)
    state = read(double, 3, reduction)
    expected, _ = step_loop(double, random_tokens(2, 2, 3), state)
    logits, _ = step_loop(single, random_tokens(2, 2, 3), state.to(torch.float32))
    assert_close(logits.double(), expected, 1e-3)


def test_copies_share_no_storage():
    state = read(tiny_cell(), 9, H2O(4))
    for other in (state.clone(), state.to(state.dtype), state.select([0, 1])):
        assert_same(other, state)
        assert storages(state).isdisjoint(storages(other))


def test_detach_shares_storage_without_the_graph():
    state = read(tiny_cell(frozen=False), 9, TOVA(4))
    assert state.requires_grad
    assert not state.detach().requires_grad
    assert state.detach()[0].keys.data_ptr() == state[0].keys.data_ptr()


@pytest.mark.parametrize("reduction", [None, TOVA(4), H2O(5)], ids=str)
def test_steps_in_place_on_a_copy_leave_the_original_unchanged(reduction):
    cell = tiny_cell()
    first = read(cell, 9, reduction)
    cell.step_(torch.tensor([5, 6]), first)  # a step in place stacks the layers of a bounded state
    second, before = copy.copy(first), first.clone()
    for _ in range(3):
        cell.step_(torch.tensor([1, 2]), second)
    assert_same(first, before)
    logits = cell.step_(torch.tensor([3, 4]), first)[0]
    assert_close(logits, cell.step(torch.tensor([3, 4]), before)[0])


def test_map_is_applied_to_each_layer_of_a_stacked_state():
    cell = tiny_cell()
    state = cell.initial_state(2, "tova:3")
    for token in random_tokens(6, 2, 5).T:
        _, state = cell.step(token, state)
    flipped = state.map(lambda x: x.flip(0))
    for H, expected in zip(flipped, state, strict=True):
        assert H.keys.equal(expected.keys.flip(0))
    assert state.map(lambda x: x[1:2]).clock.shape == (1,)


@pytest.mark.parametrize(
    "rows",
    [[2], [-3], torch.tensor([0, 5]), torch.tensor([[0]]), torch.tensor([True, False]), torch.tensor([0.0]), None, 1],
)
def test_select_refuses_other_rows(rows):
    with pytest.raises(msrnn.Error, match="select: rows"):
        read(tiny_cell(), 3).select(rows)


def test_to_refuses_integer_dtypes():
    with pytest.raises(msrnn.Error, match="int64"):
        read(tiny_cell(), 3).to(torch.int64)
