"""``cell.scan``: every state of the trace equals that of the step loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import cells, examples
from support.tiny_families import tiny_family
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import Error
from msrnn.recurrence import unroll


@given(st.data())
@examples(25)
def test_trace_equals_the_step_loop(data):
    cell, B, reduction = data.draw(cells())
    text = random_tokens(data.draw(st.integers(0, 99)), B, T := data.draw(st.integers(0, 12)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    before = step_loop(cell, random_tokens(7, B, n := data.draw(st.integers(0, 6))), cell.initial_state(B, reduction))[1]
    logits, trace = cell.scan(text, before, lengths=lengths)
    expected, _ = step_loop(cell, text, before, lengths)
    assert_close(logits, expected, 1e-8)
    states = [before]
    for t in range(T):
        states.append(cell.step(text[:, t], states[-1], active=t < lengths)[1])
        was, now = retained_positions(states[-2]), retained_positions(states[-1])
        for layer in range(len(before)):
            left = trace[layer].left[:, :, t]
            for b, row in enumerate(was[layer]):
                for k, positions in enumerate(row):
                    own = [n + t] if t < lengths[b] else []
                    gone = set(positions + own) - set(now[layer][b][k])
                    assert left[b, k].item() == (gone.pop() if gone else -1)
    assert_same(trace.at(T), states[-1], 1e-8)
    n = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    for b, some in enumerate(n.tolist()):
        assert_same(trace.at(n).select([b]), states[some].select([b]), 1e-8)
        assert_same(trace.at(some), states[some], 1e-8)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, B - 1), min_size=1, max_size=4)))
    assert_same(trace.at(n[rows], rows), trace.at(n).select(rows), 1e-8)


def test_at_refuses_rows_outside_the_batch():
    cell = tiny_cell()
    _, trace = cell.scan(random_tokens(3, 2, 12), cell.initial_state(2, "h2o:4"))
    for rows in (torch.tensor([2]), torch.tensor([-1]), torch.tensor([0.0]), [0]):
        with pytest.raises(Error, match="at: rows are"):
            trace.at(torch.tensor([3]), rows)


@pytest.mark.parametrize("reduction", ["tova:5", "h2o:6", "sinks:6:2", "full"])
def test_blocks_do_not_change_the_trace(reduction, monkeypatch):
    cell, text = tiny_cell(), random_tokens(3, 2, 23)
    _, whole = cell.scan(text, cell.initial_state(2, reduction), weights=True)
    monkeypatch.setattr(unroll, "BLOCK", 4)
    monkeypatch.setattr(unroll, "WEIGHT_FREE_BLOCK", 5)
    monkeypatch.setattr("msrnn.cell.chunking.CHUNK_TOKENS", 14)
    _, pieces = cell.scan(text, cell.initial_state(2, reduction), weights=True)
    for one, other in zip(whole, pieces, strict=True):
        assert one.left.equal(other.left)
        assert one.rows.equal(other.rows)
        assert_close(one.scores, other.scores)
    for n in (0, 3, 4, 7, 13, 23):
        assert_same(whole.at(n), pieces.at(n), 1e-9)
    ragged = torch.tensor([3, 17])
    assert_same(whole.at(ragged), pieces.at(ragged), 1e-9)


@pytest.mark.parametrize("reduction", ["tova-head:5", "shared:tova-head:5", "full"])
@pytest.mark.parametrize("block", [4, 64])
def test_last_visible_is_minus_one_for_rows_of_tokens_that_are_not_read(reduction, block, monkeypatch):
    monkeypatch.setattr(unroll, "BLOCK", block)
    monkeypatch.setattr(unroll, "WEIGHT_FREE_BLOCK", block)
    cell, lengths = tiny_cell(), torch.tensor([23, 9])
    _, trace = cell.scan(random_tokens(3, 2, 23), cell.initial_state(2, reduction), lengths=lengths)
    for layer in trace:
        last_visible = layer.last_visible.expand_as(layer.rows)
        assert ((last_visible == -1) == (layer.rows == -1)).all()
        assert (last_visible[0] >= 0).all()
        assert (last_visible[1, :, 9:] == -1).all()


def test_scores_are_those_of_the_operator(monkeypatch):
    """TOVA's score of a row at a token is its mean weight, and the row of the lowest score is evicted."""
    monkeypatch.setattr(unroll, "BLOCK", 4)
    cell, text = tiny_cell(), random_tokens(3, 1, 15)
    _, before = cell(random_tokens(9, 1, 6), cell.initial_state(1, "tova:5"))
    _, trace = cell.scan(text, before, weights=True)
    for layer in trace:
        assert layer.scores.shape == (1, 1, 15, 20)
        assert layer.rows.shape == (1, 2, 20)
        seen = ~layer.scores[0, 0].isnan()
        assert seen.sum(-1).eq(6).all()
        assert_close(layer.scores[0, 0].nansum(-1), torch.ones(15, dtype=torch.float64))
        lowest = layer.scores[0, 0].nan_to_num(torch.inf).argmin(-1)
        assert layer.rows[0, 0][lowest].equal(layer.left[0, 0])
    assert cell.scan(text, before)[1][0].scores is None


@pytest.mark.parametrize("reduction", ["full", "h2o:4", "sinks:20:1", "tova:4"])
def test_trace_is_unchanged_by_steps_in_place(reduction):
    cell, text = tiny_cell(), random_tokens(3, 2, 12)
    _, trace = cell.scan(text, cell.initial_state(2, reduction))
    first, again = trace.at(8), trace.at(8)
    for token in text[:, :4].T:
        cell.step_(token, first)
    assert_same(trace.at(8), again)


@pytest.mark.parametrize("n", [-1, 13, 2.0, True, "3", torch.tensor([1]), torch.tensor([1, 13]), torch.tensor([1.0, 2.0])])
def test_at_refuses_invalid_n(n):
    cell = tiny_cell()
    _, trace = cell.scan(random_tokens(3, 2, 12), cell.initial_state(2, "tova:4"))
    with pytest.raises(Error, match="at: n is"):
        trace.at(n)


def test_decoding_continues_from_a_prefix():
    cell, text = tiny_cell(), random_tokens(3, 1, 12)
    _, trace = cell.scan(text, cell.initial_state(1, "tova:4"))
    logits, state = cell(text[:, :7], cell.initial_state(1, "tova:4"), last_only=True)
    new, _, _ = msrnn.generate(cell, logits.argmax(-1)[:, None], state, max_new_tokens=6)
    same, _, _ = msrnn.generate(cell, logits.argmax(-1)[:, None], trace.at(7), max_new_tokens=6)
    assert new.equal(same)


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_gradients_flow_through_the_state_of_a_prefix(name):
    cell, text = tiny_cell(), random_tokens(3, 1, 9)
    learnt = getattr(cell.layers[-1], name).weight.requires_grad_()

    def gradient(state):
        return torch.autograd.grad(cell.step(text[:, 8], state)[0].square().sum(), learnt)[0]

    found = gradient(cell.scan(text, cell.initial_state(1, "tova:4"))[1].at(8))
    assert_close(found, gradient(cell(text[:, :8], cell.initial_state(1, "tova:4"))[1]), 1e-9)


@pytest.mark.parametrize(("T", "recorded"), [(32, True), (33, False)])
def test_statistics_after_every_token_are_recorded_for_short_texts_only(T, recorded):
    """They take T × (S + T) numbers. Of a longer text the state after a token is computed again, with the same result."""
    cell, text = tiny_cell(), random_tokens(0, 2, T)
    _, trace = cell.scan(text, cell.initial_state(2, "h2o:6"))
    assert [layer.is_gather_only for layer in trace] == [recorded] * 2
    assert_same(trace.at(30), step_loop(cell, text[:, :30], cell.initial_state(2, "h2o:6"))[1], 1e-9)


@pytest.mark.parametrize("operator", ["last-queries:9:4", "cam:9:1:2"])
@pytest.mark.parametrize("family", ["gemma2", "granite"])
def test_state_after_any_token_in_a_family_with_its_own_logit_rule(family, operator):
    """The state is computed again from the recorded queries, with the scale and the softcap of the layer."""
    cell, text, reduction = tiny_family(family), random_tokens(3, 2, 36), f"all-layers:{operator}"
    _, trace = cell.scan(text, cell.initial_state(2, reduction))
    for n in (12, 36):
        _, state = step_loop(cell, text[:, :n], cell.initial_state(2, reduction))
        assert_same(trace.at(n), state, 1e-8)
