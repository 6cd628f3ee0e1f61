"""Batches of states: several states as one batch, and batches without sequences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import cells, examples
from support.refusals import refusing
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell, tiny_decoder

import msrnn
from msrnn import State

CELL = tiny_cell()


def test_empty_columns_stay_in_picked_rows_until_many_tokens_are_read():
    text = random_tokens(5, 2, 8)
    _, state = CELL(text, CELL.initial_state(2, "tova:8"), lengths=torch.tensor([8, 3]))
    picked = state.select([1])
    assert [H.keys.shape[2] for H in picked] == [8, 8]
    assert [H.keys.shape[2] for H in CELL(text[:1, :1], picked)[1]] == [4, 4]


@given(st.data())
@examples(30)
def test_states_made_separately_continue_as_a_ragged_batch(data):
    cell, _, reduction = data.draw(cells())
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4)))
    text, more = random_tokens(1, len(lengths), 12), random_tokens(2, len(lengths), 5)
    _, expected = cell(text, cell.initial_state(len(lengths), reduction), lengths=lengths)
    states = []
    for row, n in zip(text, lengths.tolist(), strict=True):
        read = data.draw(st.sampled_from([step_loop, lambda cell, text, state: cell(text, state)]))
        states.append(read(cell, row[None, :n], cell.initial_state(1, reduction))[1])
    joined = State.cat(states)
    assert_same(joined, expected, 1e-9)
    for i, state in enumerate(states):
        assert_same(joined.select([i]), state)
    logits, end = step_loop(cell, more, joined)
    wanted, after = step_loop(cell, more, expected)
    assert_close(logits, wanted)
    assert_same(end, after, 1e-9)
    logits, end = cell(more, joined)
    assert_close(logits, wanted)
    assert_same(end, after, 1e-9)
    for token in more.T:
        cell.step_(token, joined)
    assert_same(joined, after, 1e-9)
    assert_same(State.cat(states), expected, 1e-9)  # the steps in place have not changed the parts


def test_cat_takes_batches_learned_rows_and_remapped_positions():
    cell = tiny_decoder(persistent=2)
    for places in ("absolute", "inside"):
        states = [
            cell(random_tokens(B, B, T), cell.initial_state(B, "tova:3", places=places))[1] for B, T in ((2, 1), (1, 6), (3, 3))
        ]
        joined, token = State.cat(states), random_tokens(5, 6, 1)[:, 0]
        assert joined.clock.tolist() == [1, 1, 6, 3, 3, 3]
        alone = [cell.step(ids, state)[0] for ids, state in zip(token.split([2, 1, 3]), states, strict=True)]
        assert_close(cell.step(token, joined)[0], torch.cat(alone))


def test_cat_keeps_a_graph_and_recent_tokens():
    cell = tiny_cell(frozen=False)
    states = [cell(random_tokens(1, 1, n), cell.initial_state(1, "tova:3"))[1] for n in (2, 5)]
    assert State.cat(states).requires_grad
    states[1].recent_tokens = torch.tensor([[4, 5]])
    assert State.cat(states).recent_tokens.tolist() == [[-1, -1], [4, 5]]
    states[0].recent_tokens = torch.tensor([[3]])
    assert State.cat(states).recent_tokens.tolist() == [[-1, 3], [4, 5]]
    assert State.cat(states[:1]).recent_tokens.tolist() == [[3]]


def read(cell, reduction="tova:3", **options):
    return cell(random_tokens(1, 1, 5), cell.initial_state(1, reduction, **options))[1]


REFUSED = {
    "cat: states are []": lambda: [],
    "cat: states are 'ab'": lambda: "ab",
    "cat: states are State": lambda: read(CELL),
    "cat: states are [1]": lambda: [1],
    "state 1 belongs to another model": lambda: [read(CELL), read(tiny_cell(seed=1))],
    "state 1 has tova:4 in layer 0, state 0 has tova:3": lambda: [read(CELL), read(CELL, "tova:4")],
    "state 1 has h2o:3 in layer 1, state 0 has tova:3": lambda: [read(CELL), read(CELL, ["tova:3", "h2o:3"])],
    "state 1 has places 'inside', state 0 has 'absolute'": lambda: [read(CELL), read(CELL, places="inside")],
    "state 1 is torch.float32": lambda: [read(CELL), read(CELL).to(torch.float32)],
}


@pytest.mark.parametrize(("message", "states"), REFUSED.items(), ids=REFUSED)
def test_states_that_do_not_fit_are_refused(message, states):
    with refusing(message):
        State.cat(states())


@pytest.mark.parametrize("reduction", ["full", "tova:3", ["window:2", "h2o:4"], "cam:4:1", "knorm:4"], ids=str)
def test_empty_batches_are_read(reduction, tmp_path):
    cell = tiny_cell()
    _, state = cell(random_tokens(1, 2, 7), cell.initial_state(2, reduction))
    empty, none = state.select([]), torch.zeros(0, dtype=torch.int64)
    text = torch.zeros(0, 3, dtype=torch.int64)
    for logits, after in (cell.step(none, empty), cell.step(none, empty, active=none.bool()), cell.step_(none, empty.clone())):
        assert logits.shape == (0, 50)
        assert after.clock.shape == (0,)
    assert cell(text, empty)[0].shape == (0, 3, 50)
    assert cell(text, empty, lengths=none, last_only=True)[0].shape == (0, 50)
    logits, trace = cell.scan(text, empty, weights=True)
    assert logits.shape == (0, 3, 50)
    assert trace.at(2).clock.shape == (0,)
    assert cell.scan(random_tokens(1, 2, 5), state)[1].at(2, rows=none).clock.shape == (0,)
    assert msrnn.generate(cell, text, empty, max_new_tokens=3).tokens.shape == (0, 3)
    assert msrnn.lookahead(cell, text, empty, max_new_tokens=3).state.clock.shape == (0,)
    assert msrnn.jacobi(cell, text, empty, max_new_tokens=3).state.clock.shape == (0,)
    empty.save(tmp_path / "state")
    assert msrnn.load_state(tmp_path / "state").clock.shape == (0,)
    assert_same(State.cat([empty, state, empty]), state)
