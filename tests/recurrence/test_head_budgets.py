"""Sizes per head and shared budgets: a naive loop, and step = unroll for every split, ragged batch, dtype and trace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import assert_unchanged, copy_tensors, draw_bools, examples
from support.head_budgets import SharedHeads, SizedHeads, caote, h2o, per_head, tova, uneven_cells
from support.naive_operators import naive
from support.tiny_families import tiny_family
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import CAOTE, H2O, TOVA, Error, KeyDiff, LastQueries, SharedBudget, Window
from msrnn.recurrence import unroll

SIZES = ((3, 6), (5, 2))
UNBOUNDED = ((None, 3), (4, None))
KINDS = {
    "tova": (lambda size: TOVA(size, per_head=True), tova),
    "h2o": (lambda size: H2O(size, recent=1), h2o),
    "caote": (CAOTE, caote),
}


def many_tokens(cell, text, state):
    return cell(text, state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes_or_floor", [SIZES, UNBOUNDED, 0, 0.8])
def test_both_paths_equal_a_naive_loop(kind, sizes_or_floor):
    make, score = KINDS[kind]
    cell, text = tiny_cell(seed=3), random_tokens(1, 1, 18)
    sizes = sizes_or_floor if isinstance(sizes_or_floor, tuple) else None
    floor = 0 if sizes else sizes_or_floor
    if sizes:
        reduction, rule = make(sizes), lambda l: SizedHeads(sizes[l], score)
    else:
        reduction, rule = SharedBudget(make(4), floor=floor), lambda l: SharedHeads(4, int(4 * floor), score)
    expected, rows = naive(cell, text[0], rule)
    for read in (step_loop, many_tokens):
        logits, state = read(cell, text, cell.initial_state(1, reduction))
        assert_close(logits[0], expected, 1e-9)
        assert [layer[0] for layer in retained_positions(state)] == rows
    counts = [tuple(len(head) for head in layer) for layer in rows]
    if sizes:
        assert counts == [tuple(18 if size is None else size for size in layer) for layer in sizes]
    else:
        assert all(sum(layer) == 8 and min(layer) >= int(4 * floor) for layer in counts)
        assert floor or kind != "tova" or any(layer[0] != layer[1] for layer in counts), "else no allocation would show"


@given(st.data(), uneven_cells())
@examples(30)
def test_call_equals_the_step_loop_for_any_split_and_ragged_batch(data, drawn):
    cell, reduction = drawn
    B = data.draw(st.integers(1, 2))
    T = data.draw(st.integers(0, 14))
    text, dtype = random_tokens(data.draw(st.integers(0, 999)), B, T), data.draw(st.sampled_from([None, None, torch.int8]))
    places = data.draw(st.sampled_from(["absolute", "absolute", "inside", "compressed"]))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    start = cell.initial_state(B, reduction, dtype=dtype, places=places)
    expected, end = step_loop(cell, text, start, lengths)
    logits, state = cell(text, start, lengths=lengths)
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    cut = data.draw(st.integers(0, T))
    _, state = cell(text[:, :cut], start, lengths=lengths.clamp(max=cut))
    _, state = cell(text[:, cut:], state, lengths=(lengths - cut).clamp(min=0))
    assert_same(state, end, 1e-8)
    b = data.draw(st.integers(0, B - 1))
    alone, own = cell(text[b : b + 1, : lengths[b]], cell.initial_state(1, reduction, dtype=dtype, places=places))
    assert_close(alone[0], expected[b, : lengths[b]], 1e-8)
    assert_same(end.select([b]), own, 1e-8)


@given(st.data(), uneven_cells())
@examples(15)
def test_trace_gives_the_state_after_any_token(data, drawn):
    cell, reduction = drawn
    text = random_tokens(data.draw(st.integers(0, 999)), 2, T := data.draw(st.integers(1, 14)))
    _, start = cell(random_tokens(5, 2, data.draw(st.integers(0, 6))), cell.initial_state(2, reduction))
    lengths = torch.tensor([T, data.draw(st.integers(0, T))])
    logits, trace = cell.scan(text, start, lengths=lengths, weights=data.draw(st.booleans()))
    n = data.draw(st.integers(0, T))
    expected, end = cell(text[:, :n], start, lengths=lengths.clamp(max=n))
    assert_close(logits[:, :n], expected, 1e-8)
    assert_same(trace.at(n), end, 1e-8)
    m = data.draw(st.integers(0, T))
    _, other = cell(text[:, :m], start, lengths=lengths.clamp(max=m))
    assert_same(trace.at(torch.tensor([n, m])), msrnn.State.cat([end.select([0]), other.select([1])]), 1e-8)


@given(st.data(), uneven_cells())
@examples(10)
def test_step_in_place_equals_step_and_inactive_rows_stay(data, drawn):
    cell, reduction = drawn
    pure = cell.initial_state(2, reduction)
    own, text = pure.clone(), random_tokens(data.draw(st.integers(0, 99)), 2, 9)
    for t in range(9):
        active, before = draw_bools(data.draw, 2), copy_tensors(pure)
        (logits, after), (same, _) = cell.step(text[:, t], pure, active=active), cell.step_(text[:, t], own, active=active)
        assert_unchanged(pure, before)
        assert_close(logits[active], same[active], 1e-8)
        assert_same(after, own, 1e-8)
        unread = (~active).nonzero()[:, 0]
        assert_same(after.select(unread), pure.select(unread))
        pure = after


@pytest.mark.parametrize("floor", [None, 0.5])
@pytest.mark.parametrize("block", [3, 64])
def test_blocks_do_not_change_the_result(floor, block, monkeypatch):
    monkeypatch.setattr(unroll, "BLOCK", block)
    monkeypatch.setattr(unroll, "WEIGHT_FREE_BLOCK", block + 1)
    monkeypatch.setattr("msrnn.cell.chunking.CHUNK_TOKENS", 30)
    cell, text, size = tiny_cell(), random_tokens(5, 1, 45), ((3, 7),) if floor is None else 4
    for operator in (Window(size), TOVA(size, per_head=True), H2O(size), LastQueries(size, window=2), KeyDiff(size)):
        reduction = operator if floor is None else SharedBudget(operator, floor=floor)
        expected, end = step_loop(cell, text, cell.initial_state(1, reduction))
        logits, state = cell(text, cell.initial_state(1, reduction))
        assert_close(logits, expected, 1e-8)
        assert_same(state, end, 1e-8)
        _, trace = cell.scan(text, cell.initial_state(1, reduction))
        assert_same(trace.at(45), end, 1e-8)


def test_lookahead_and_jacobi_equal_greedy():
    cell, text = tiny_cell(), random_tokens(2, 2, 9)
    lengths = torch.tensor([9, 4])
    for reduction in ("tova-head:2/6,5/3", "shared:floor=0:caote:4", "last-queries:5/3:2", "sinks:full/3,4/full:1"):
        state = cell.initial_state(2, reduction)
        greedy = msrnn.generate(cell, text, state, max_new_tokens=10, lengths=lengths)
        for decode in (msrnn.lookahead, msrnn.jacobi):
            found = decode(cell, text, state, max_new_tokens=10, lengths=lengths)
            assert found.tokens.equal(greedy.tokens)
            assert_same(found.state, greedy.state, 1e-8)


def test_a_floor_of_1_equals_the_operator_and_one_size_equals_that_of_each_head():
    cell, text = tiny_cell(), random_tokens(3, 2, 15)
    for operator, same in zip(per_head(4), per_head(((4, 4),)), strict=True):
        logits, state = cell(text, cell.initial_state(2, operator))
        for reduction in (SharedBudget(operator, floor=1), same):
            found, uneven = cell(text, cell.initial_state(2, reduction))
            assert_close(found, logits, 1e-8)
            assert retained_positions(uneven) == retained_positions(state)


def test_unbounded_heads_between_bounded_ones_are_heads_of_the_full_model():
    """The first layer has the same inputs as without an operator. DuoAttention's other heads attend to sinks and a window."""
    cell, text = tiny_cell(n_layers=1), random_tokens(3, 2, 15)
    expected, full = cell(text, cell.initial_state(2, "full"))
    logits, state = cell(text, cell.initial_state(2, "sinks:full/5:2"))
    for name in ("keys", "values", "positions"):
        assert full[0].rows[name][:, 0].equal(state[0].rows[name][:, 0])
    assert retained_positions(state) == [[[[*range(15)], [0, 1, 12, 13, 14]]] * 2]
    assert_close(logits[:, :6], expected[:, :6], 1e-9)  # a query attends to the size and its own row
    assert not torch.allclose(logits[:, 6:], expected[:, 6:])
    same, every = cell(text, cell.initial_state(2, "sinks:full/full:2"))
    assert_close(same, expected, 1e-9)
    assert retained_positions(every) == retained_positions(full)


@pytest.mark.parametrize(
    "reduction", ["all-layers:tova-head:3/6", "all-layers:shared:floor=0:h2o:4", "all-layers:shared:caote:4"]
)
def test_learned_rows_stay_and_are_not_counted(reduction):
    cell, text = tiny_family("granite_swa"), random_tokens(3, 2, 14)
    expected, end = step_loop(cell, text, cell.initial_state(2, reduction))
    logits, state = cell(text, cell.initial_state(2, reduction))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    assert all((H.positions[..., :1] == -2).all() for H in state)
    assert {int((H.positions >= 0).sum()) for H in state} == {2 * (9 if "/" in reduction else 8)}


@pytest.mark.parametrize("reduction", ["tova-head:3/6", "shared:tova-head:4"])
def test_gradients_of_both_paths_agree(reduction):
    cell, text, grads = tiny_cell(frozen=False), random_tokens(3, 1, 9), []
    for read in (step_loop, many_tokens):
        cell.zero_grad()
        logits, _ = read(cell, text, cell.initial_state(1, reduction))
        logits.square().mean().backward()
        grads.append([p.grad.clone() for p in cell.parameters()])
    for one, other in zip(*grads, strict=True):
        assert_close(one, other, 1e-9)


@pytest.mark.parametrize("reduction", ["shared:tova-head:4", "shared:keydiff:4", "shared:a2sf:4"])
def test_a_shared_budget_reads_numbers_where_pytorch_gives_no_list(reduction, monkeypatch):
    """As inside of transforms with torch 2.8."""

    def refuse(x):
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    cell, text = tiny_cell(), random_tokens(1, 1, 9)
    _, expected = cell(text, cell.initial_state(1, reduction))
    start = cell.initial_state(1, reduction)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "tolist", refuse)
        _, state = cell(text, start)
    assert_same(state, expected)


def test_several_evictions_of_one_token_have_no_left():
    cell = tiny_cell()
    _, trace = cell.scan(random_tokens(1, 1, 12), cell.initial_state(1, "shared:tova-head:4"))
    with pytest.raises(Error, match="left: shared:tova-head:4 evicts several rows"):
        _ = trace[0].left
    assert int((trace[0].last_visible < 12).sum()) == 2 * (12 - 4)
