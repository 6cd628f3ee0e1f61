"""The laws of a cell, for random small cells, texts, splits and operators."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import assert_unchanged, bounded_operators, cells, copy_tensors, draw_text, examples
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import H2O, TOVA, Full, Window

# Reading.


@given(st.data())
@examples(25)
def test_the_fold_is_the_step_loop_however_the_text_is_split(data):
    cell, B, reduction = data.draw(cells())
    text = draw_text(data.draw, B)
    T = text.shape[1]
    by_step, end = step_loop(cell, text, cell.initial_state(B, reduction))
    whole, after = cell(text, cell.initial_state(B, reduction))
    assert_close(whole, by_step, 1e-8)
    assert_same(after, end, 1e-8)
    cuts = sorted(data.draw(st.lists(st.integers(0, T), max_size=5)))
    state, pieces = cell.initial_state(B, reduction), []
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        logits, state = cell(text[:, start:stop], state)
        assert logits.shape == (B, stop - start, cell.config.vocab_size)
        pieces.append(logits)
    assert_close(torch.cat(pieces, 1), by_step, 1e-8)
    assert_same(state, end, 1e-8)


@given(st.data())
@examples(25)
def test_a_ragged_row_reads_as_alone_and_padding_is_any_number(data):
    cell, B, reduction = data.draw(cells())
    text = draw_text(data.draw, B)
    T = text.shape[1]
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    past = torch.arange(T) >= lengths[:, None]
    text = text.masked_fill(past, data.draw(st.sampled_from([0, -100, 50, 10**9])))
    logits, state = cell(text, cell.initial_state(B, reduction), lengths=lengths)
    assert logits.isnan().equal(past[..., None].expand_as(logits))
    stepped, end = step_loop(cell, text, cell.initial_state(B, reduction), lengths)
    assert_close(logits, stepped, 1e-8)
    assert_same(state, end, 1e-8)
    last, same = cell(text, cell.initial_state(B, reduction), lengths=lengths, last_only=True)
    assert_same(same, state, 1e-8)
    assert state.clock.tolist() == lengths.tolist()
    more = random_tokens(5, B, 4)
    going_on, later = cell(more, state)
    for b, n in enumerate(lengths.tolist()):
        alone, own = cell(text[b : b + 1, :n], cell.initial_state(1, reduction))
        assert_close(logits[b, :n], alone[0], 1e-8)
        assert_same(state.select([b]), own, 1e-8)
        assert_close(last[b], alone[0, -1] if n else torch.full_like(last[b], torch.nan), 1e-8)
        on, own = cell(more[b : b + 1], own)
        assert_close(going_on[b], on[0], 1e-8)
        assert_same(later.select([b]), own, 1e-8)


@given(st.data())
@examples(20)
def test_last_only_is_the_last_row_of_the_full_logits(data):
    cell, B, reduction = data.draw(cells())
    text = draw_text(data.draw, B)
    full, state = cell(text, cell.initial_state(B, reduction))
    last, after = cell(text, cell.initial_state(B, reduction), last_only=True)
    assert last.shape == (B, cell.config.vocab_size)
    assert_close(last, full[:, -1] if text.shape[1] else torch.full_like(last, torch.nan), 1e-8)
    assert_same(after, state, 1e-8)


@given(st.data())
@examples(15)
def test_layers_chained_by_hand_are_the_step(data):
    cell, B, reduction = data.draw(cells())
    state = cell.initial_state(B, reduction)
    for token in random_tokens(3, B, 9).T:
        logits, after = cell.step(token, state)
        x, chained = cell.embed(token), []
        for layer, H in zip(cell.layers, state, strict=True):
            x, H = layer.step(x, H)
            assert x.shape == (B, cell.config.width)
            chained.append(H)
        assert_close(cell.compute_logits(x), logits, 1e-12)
        assert_same(state.with_layers(chained), after, 1e-12)
        state = after


# The state as a value.


@given(st.data())
@examples(30)
def test_no_state_is_ever_edited_but_by_the_step_in_place(data):
    """Every state of a run, and every copy of one, is bit for bit what it was after its descendants moved on."""
    cell, B, reduction = data.draw(cells())
    text = random_tokens(data.draw(st.integers(0, 99)), B, 12)
    kept = [cell.initial_state(B, reduction)]
    shots = [copy_tensors(kept[0])]
    for t in range(10):
        parent = kept[-1]
        way = data.draw(st.sampled_from(["step", "some", "call", "empty call", "clone", "select", "to", "loop"]))
        if way == "step":
            child = cell.step(text[:, t], parent)[1]
        elif way == "some":
            child = cell.step(text[:, t], parent, active=torch.arange(B) % 2 == t % 2)[1]
        elif way == "call":
            child = cell(text[:, t : t + 3], parent, lengths=torch.arange(B) % 3)[1]
        elif way == "empty call":
            child = cell(text[:, :0], parent)[1]
        elif way == "clone":
            child = parent.clone()
        elif way == "select":
            child = parent.select(slice(None))
        elif way == "to":
            child = parent.to(torch.float32).to(torch.float64)
        else:
            child = parent.clone()
            child = cell.step_(text[:, t], child)[1]
        kept.append(child)
        shots.append(copy_tensors(child))
        if data.draw(st.booleans()):  # move a descendant in place, and forget it
            makers = [lambda: cell.step(text[:, t], child)[1], child.clone, lambda: child.to(torch.float64)]  # noqa: B023
            branch = data.draw(st.sampled_from(makers))()
            for token in text[:, :3].T:
                cell.step_(token, branch)
        for state, shot in zip(kept, shots, strict=True):
            assert_unchanged(state, shot)


@given(st.data())
@examples(20)
def test_in_place_on_what_a_call_returned_leaves_its_argument_alone(data):
    cell, B, reduction = data.draw(cells())
    _, state = cell(random_tokens(1, B, data.draw(st.integers(0, 9))), cell.initial_state(B, reduction))
    shot = copy_tensors(state)
    nobody = torch.zeros(B, dtype=torch.bool)
    makers = [
        lambda: cell(random_tokens(0, B, 0), state)[1],
        lambda: cell(random_tokens(0, B, 3), state, lengths=torch.zeros(B, dtype=torch.int64))[1],
        lambda: cell.step(random_tokens(0, B, 1)[:, 0], state, active=nobody)[1],
        lambda: cell.step(random_tokens(0, B, 1)[:, 0], state)[1],
        lambda: state.select(list(range(B))),
        lambda: state.clone(),
    ]
    for make in makers:
        child = make()
        for token in random_tokens(2, B, 4).T:
            cell.step_(token, child)
        assert_unchanged(state, shot)


@given(st.data())
@examples(20)
def test_the_step_in_place_is_the_step(data):
    cell, B, reduction = data.draw(cells())
    text = random_tokens(data.draw(st.integers(0, 99)), B, 10)
    pure = cell.initial_state(B, reduction)
    moving = pure.clone()
    for token in text.T:
        active = data.draw(st.none() | st.lists(st.booleans(), min_size=B, max_size=B).map(torch.tensor))
        logits, pure = cell.step(token, pure, active=active)
        in_place, same = cell.step_(token, moving, active=active)
        assert same is moving
        rows = slice(None) if active is None else active
        assert in_place[rows].equal(logits[rows])
        assert_same(moving, pure)


@given(st.data())
@examples(20)
def test_rows_that_are_not_active_stand_still_and_the_others_step_as_if_alone(data):
    cell, B, reduction = data.draw(cells())
    text = random_tokens(data.draw(st.integers(0, 99)), B, 9)
    state = cell.initial_state(B, reduction)
    for token in text.T:
        active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=B, max_size=B)))
        logits, after = cell.step(token, state, active=active)
        for b, moves in enumerate(active.tolist()):
            if moves:
                alone, own = cell.step(token[b : b + 1], state.select([b]))
                assert_close(logits[b], alone[0])
                assert_same(after.select([b]), own, 1e-9)
            else:
                assert_same(after.select([b]), state.select([b]))
        state = after


@given(st.data())
@examples(20)
def test_select_picks_repeats_and_reorders_and_each_row_goes_on_as_it_would(data):
    cell, B, reduction = data.draw(cells())
    _, state = cell(random_tokens(1, B, 12), cell.initial_state(B, reduction), lengths=12 - torch.arange(B) * 3)
    rows = data.draw(st.lists(st.integers(-B, B - 1), min_size=1, max_size=5))
    more = random_tokens(2, B, 4)
    straight, _ = step_loop(cell, more, state)
    for picked in (state.select(rows), state.select(torch.tensor(rows))):
        for i, b in enumerate(rows):
            assert_same(picked.select([i]), state.select([b]))
        logits, _ = step_loop(cell, more[rows], picked)
        assert_close(logits, straight[rows])
    cut = slice(data.draw(st.integers(-B, B)), None, data.draw(st.integers(1, 2)))
    assert state.select(cut).clock.tolist() == state.clock[cut].tolist()
    assert_same(state.select(cut), state.select(list(range(B))[cut]))


@given(st.data())
@examples(15)
def test_branch_and_undo_after_evictions(data):
    cell, B, reduction = data.draw(cells())
    prompt, one, other = random_tokens(1, B, 10), random_tokens(2, B, 5), random_tokens(3, B, 5)
    _, fork = cell(prompt, cell.initial_state(B, reduction))
    for path in (one, other, one):  # the same state three times
        branch, end = step_loop(cell, path, fork)
        straight, after = cell(torch.cat((prompt, path), 1), cell.initial_state(B, reduction))
        assert_close(branch, straight[:, 10:], 1e-8)
        assert_same(end, after, 1e-8)


@given(data=st.data())
@examples(25)
def test_a_saved_state_goes_on_as_the_state_would(data, tmp_path_factory):
    cell, B, reduction = data.draw(cells())
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    state = cell.initial_state(B, reduction)
    for token in random_tokens(1, B, data.draw(st.integers(0, 10))).T:
        if data.draw(st.booleans()):
            cell.step_(token, state)
        else:
            state = cell.step(token, state, active=torch.arange(B) < data.draw(st.integers(1, B)))[1]
    state.save(path)
    loaded = msrnn.load_state(path)
    assert [H.reduction for H in loaded] == [H.reduction for H in state]
    assert_same(loaded, state)
    more = random_tokens(2, B, 6)
    logits, end = step_loop(cell, more, loaded)
    straight, after = step_loop(cell, more, state)
    assert_close(logits, straight)
    assert_same(end, after)


# Bounds.


@given(st.data())
@examples(30)
def test_never_more_than_size_rows_each_seen_and_unique_and_shapes_stand_still_once_full(data):
    cell, B, reduction = data.draw(cells())
    state = cell.initial_state(B, reduction)
    before = [[[set()] * cell.config.n_kv_heads] * B] * len(state)
    for t, token in enumerate(random_tokens(data.draw(st.integers(0, 99)), B, 12).T):
        state = cell.step(token, state)[1]
        now = retained_positions(state)
        for l, H in enumerate(state):
            size = H.reduction.size
            assert H.keys.shape[2] == (t + 1 if size is None else min(t + 1, size))  # g(t)
            for b in range(B):
                for k, positions in enumerate(now[l][b]):
                    assert len(positions) == len(set(positions)) == H.keys.shape[2]
                    assert set(positions) <= set(before[l][b][k]) | {t}  # what left never comes back
        before = now


@given(st.data())
@examples(20)
def test_ragged_rows_stay_within_size_too(data):
    cell, B, reduction = data.draw(cells())
    state = cell.initial_state(B, reduction)
    full = [False] * len(state)
    for token in random_tokens(1, B, 14).T:
        active = torch.tensor(data.draw(st.lists(st.booleans(), min_size=B, max_size=B)))
        shapes = [H.keys.shape for H in state]
        state = cell.step(token, state, active=active)[1]
        for l, H in enumerate(state):
            size, clock = H.reduction.size, H.clock.tolist()
            assert size is None or H.keys.shape[2] <= size
            assert not full[l] or H.keys.shape == shapes[l]
            full[l] = H.keys.shape[2] == size
            for b in range(B):
                counts = {len(positions) for positions in retained_positions(state)[l][b]}
                assert counts == {clock[b] if size is None else min(clock[b], size)}
                assert all(0 <= p < clock[b] for positions in retained_positions(state)[l][b] for p in positions)


@given(st.data())
@examples(12)
def test_below_its_bound_every_operator_is_full_exactly(data):
    cell, B, _ = data.draw(cells())
    size, text = data.draw(st.integers(2, 8)), random_tokens(data.draw(st.integers(0, 99)), B, 10)
    logits, _ = step_loop(cell, text, cell.initial_state(B, Full()))
    for operator in bounded_operators(size):
        own, state = step_loop(cell, text[:, : size + 1], cell.initial_state(B, operator))
        assert own.equal(logits[:, : size + 1])  # attention sees size + 1 rows
        assert {len(p) for H in retained_positions(state) for row in H for p in row} == {size}


# Gradients.


@pytest.mark.parametrize("reduction", [TOVA(3), TOVA(3, per_head=True), H2O(4), Window(3), Full()], ids=str)
def test_a_trainable_cell_differentiates_the_fold_at_fixed_choices(reduction):
    cell = tiny_cell(seed=4, frozen=False, n_layers=2)
    text = random_tokens(7, 2, 9)
    aim = torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss():
        logits, state = cell(text, cell.initial_state(2, reduction))
        return (logits.tanh() * aim).sum(), retained_positions(state)

    value, chosen = loss()
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cell.parameters())
    watched = [cell.embed.weight, cell.head.weight, cell.norm.weight]
    watched += [p for layer in cell.layers for p in layer.parameters()]
    step = 1e-6
    for p in watched:
        spot = p.grad.abs().argmax()  # where there is something to compare
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                p.view(-1)[spot] += sign * step
                end, same = loss()
                p.view(-1)[spot] -= sign * step
            assert same == chosen
            ends.append(end)
        torch.testing.assert_close(p.grad.view(-1)[spot], (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_the_gradient_flows_through_a_state_until_it_is_detached():
    cell = tiny_cell(frozen=False)
    _, state = cell(random_tokens(1, 1, 6), cell.initial_state(1, TOVA(3)))
    assert state.requires_grad
    _, scored = cell(random_tokens(1, 1, 6), cell.initial_state(1, H2O(3)))
    assert not any(x.requires_grad for H in scored for x in H.row_stats.values())  # what decides is not differentiated
    token = random_tokens(2, 1, 1)[:, 0]
    for cut in (False, True):
        cell.zero_grad()
        logits, _ = cell.step(token, state.detach() if cut else state)
        first = random_tokens(1, 1, 6)[0]
        logits.sum().backward(retain_graph=True)
        read = retained_positions(state)[0][0][0]
        grads = cell.embed.weight.grad.abs().sum(1)
        assert all((grads[first[p]] > 0) != cut or first[p] == token[0] for p in read)


def test_in_place_refuses_a_graph_and_a_frozen_cell_builds_none():
    token = random_tokens(1, 2, 1)[:, 0]
    trainable, frozen = tiny_cell(frozen=False), tiny_cell()
    with pytest.raises(msrnn.Error, match="in place"):
        trainable.step_(token, trainable.initial_state(2))
    with torch.no_grad():
        trainable.step_(token, trainable.initial_state(2))
    _, carrying = trainable.step(token)
    with pytest.raises(msrnn.Error, match="in place"):
        frozen.step_(token, carrying)
    logits, state = frozen(random_tokens(1, 2, 5))
    assert not logits.requires_grad
    assert not state.requires_grad
    logits, state = frozen.step(token, state)
    assert not logits.requires_grad
    assert not state.requires_grad
