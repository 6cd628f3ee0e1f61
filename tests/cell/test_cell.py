"""``step``, ``step_`` and the many-token call of random small cells give the results of the step loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import bounded_operators, cells, draw_bools, draw_text, examples
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import TOVA, Full


@given(st.data())
@examples(25)
def test_call_equals_the_step_loop_for_any_split_of_the_text(data):
    cell, B, reduction = data.draw(cells())
    text = draw_text(data.draw, B)
    T = text.shape[1]
    expected, end = step_loop(cell, text, cell.initial_state(B, reduction))
    logits, after = cell(text, cell.initial_state(B, reduction))
    assert_close(logits, expected, 1e-8)
    assert_same(after, end, 1e-8)
    cuts = sorted(data.draw(st.lists(st.integers(0, T), max_size=5)))
    state, parts = cell.initial_state(B, reduction), []
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        logits, state = cell(text[:, start:stop], state)
        assert logits.shape == (B, stop - start, cell.config.vocab_size)
        parts.append(logits)
    assert_close(torch.cat(parts, 1), expected, 1e-8)
    assert_same(state, end, 1e-8)


@given(st.data())
@examples(25)
def test_ragged_row_equals_the_row_alone_and_padding_is_ignored(data):
    cell, B, reduction = data.draw(cells())
    text = draw_text(data.draw, B)
    T = text.shape[1]
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    padding = torch.arange(T) >= lengths[:, None]
    text = text.masked_fill(padding, data.draw(st.sampled_from([0, -100, 50, 10**9])))
    logits, state = cell(text, cell.initial_state(B, reduction), lengths=lengths)
    assert logits.isnan().equal(padding[..., None].expand_as(logits))
    expected, end = step_loop(cell, text, cell.initial_state(B, reduction), lengths)
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    last, same = cell(text, cell.initial_state(B, reduction), lengths=lengths, last_only=True)
    assert_same(same, state, 1e-8)
    assert state.clock.tolist() == lengths.tolist()
    more = random_tokens(5, B, 4)
    continued, later = cell(more, state)
    for b, n in enumerate(lengths.tolist()):
        alone, own_state = cell(text[b : b + 1, :n], cell.initial_state(1, reduction))
        assert_close(logits[b, :n], alone[0], 1e-8)
        assert_same(state.select([b]), own_state, 1e-8)
        assert_close(last[b], alone[0, -1] if n else torch.full_like(last[b], torch.nan), 1e-8)
        alone, own_state = cell(more[b : b + 1], own_state)
        assert_close(continued[b], alone[0], 1e-8)
        assert_same(later.select([b]), own_state, 1e-8)


@given(st.data())
@examples(20)
def test_last_only_returns_the_logits_of_the_last_token(data):
    cell, B, reduction = data.draw(cells())
    text = draw_text(data.draw, B)
    logits, state = cell(text, cell.initial_state(B, reduction))
    last, after = cell(text, cell.initial_state(B, reduction), last_only=True)
    assert last.shape == (B, cell.config.vocab_size)
    assert_close(last, logits[:, -1] if text.shape[1] else torch.full_like(last, torch.nan), 1e-8)
    assert_same(after, state, 1e-8)


@given(st.data())
@examples(20)
def test_step_in_place_equals_step(data):
    cell, B, reduction = data.draw(cells())
    text = random_tokens(data.draw(st.integers(0, 99)), B, 10)
    pure = cell.initial_state(B, reduction)
    modified = pure.clone()
    for token in text.T:
        active = draw_bools(data.draw, B) if data.draw(st.booleans()) else None
        expected, pure = cell.step(token, pure, active=active)
        logits, returned = cell.step_(token, modified, active=active)
        assert returned is modified
        rows = slice(None) if active is None else active
        assert logits[rows].equal(expected[rows])
        assert_same(modified, pure)


@given(st.data())
@examples(20)
def test_inactive_rows_keep_their_state_and_active_rows_equal_the_row_alone(data):
    cell, B, reduction = data.draw(cells())
    text = random_tokens(data.draw(st.integers(0, 99)), B, 9)
    state = cell.initial_state(B, reduction)
    for token in text.T:
        active = draw_bools(data.draw, B)
        logits, after = cell.step(token, state, active=active)
        for b, is_active in enumerate(active.tolist()):
            if is_active:
                alone, own_state = cell.step(token[b : b + 1], state.select([b]))
                assert_close(logits[b], alone[0])
                assert_same(after.select([b]), own_state, 1e-9)
            else:
                assert_same(after.select([b]), state.select([b]))
        state = after


@pytest.mark.parametrize("id", [-100, 50, 10**9])
def test_inactive_row_may_contain_any_id(id):
    """As padding may in a call; ``generate`` passes on what the caller put into finished rows."""
    cell = tiny_cell()
    token = torch.tensor([3, id])
    logits, state = cell.step(token, active=torch.tensor([True, False]))
    assert_close(logits[0], cell.step(torch.tensor([3]))[0][0])
    assert state.clock.tolist() == [1, 0]


@given(st.data())
@examples(12)
def test_bounded_operator_equals_full_below_its_size(data):
    cell, B, _ = data.draw(cells())
    size, text = data.draw(st.integers(2, 8)), random_tokens(data.draw(st.integers(0, 99)), B, 10)
    expected, _ = step_loop(cell, text, cell.initial_state(B, Full()))
    for operator in bounded_operators(size):
        logits, state = step_loop(cell, text[:, : size + 1], cell.initial_state(B, operator))
        assert logits.equal(expected[:, : size + 1])  # a query attends to size + 1 rows
        assert {len(p) for H in retained_positions(state) for row in H for p in row} == {size}


def test_ragged_calls_leave_no_empty_columns():
    cell = tiny_cell()
    text, state = random_tokens(4, 2, 6), cell.initial_state(2)
    for lengths in ([6, 1], [1, 6], [0, 3]):
        _, state = cell(text, state, lengths=torch.tensor(lengths))
    assert state.clock.tolist() == [7, 10]
    assert state[0].keys.shape[2] == 10
    alone = cell.initial_state(1)
    for length in (1, 6, 3):
        _, alone = cell(text[1:, :length], alone)
    assert_same(state.select([1]), alone, 1e-9)


def test_state_of_inference_mode_can_be_used_outside():
    with torch.inference_mode():
        cell = tiny_cell()
        _, state = cell.step(torch.tensor([1, 2]), cell.initial_state(2, "h2o:4"))
        cell.step_(torch.tensor([1, 2]), state)
    expected, _ = cell.step(torch.tensor([3, 4]), state)
    logits, _ = cell(torch.tensor([[3], [4]]), state)
    assert_close(logits[:, 0], expected)
    with pytest.raises(msrnn.Error, match="inference_mode"):
        cell.step_(torch.tensor([3, 4]), state)
    assert_close(cell.step_(torch.tensor([3, 4]), state.clone())[0], expected)


def test_step_in_place_compiles_as_one_graph():
    cell = tiny_cell()
    compiled_step = torch.compile(cell.step_, fullgraph=True, backend="eager")
    _, state = cell(random_tokens(1, 2, 9), cell.initial_state(2, TOVA(4)))
    compiled = state.clone()
    for token in random_tokens(3, 2, 5).T:
        assert_close(compiled_step(token, compiled)[0], cell.step_(token, state)[0])
    assert_same(compiled, state)
