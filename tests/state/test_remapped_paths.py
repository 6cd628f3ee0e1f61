"""Under position remapping, calls, scans, steps in place and decoding equal the step loop."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import cells, examples
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, step_loop, tiny_cell

import msrnn
from msrnn.state import position_remapping
from msrnn.state.position_remapping import RULES, PositionRemapping

FURTHER_OPERATORS = [
    "random:5",
    "last-queries:6:2",
    "morphkv:6:3",
    "scissorhands:7:3",
    "keyformer:6",
    "keydiff:5",
    "cam:6:1:2",
    "caote:5",
]


@given(st.data())
@examples(15)
def test_call_scan_and_step_in_place_equal_the_step_loop(data):
    cell, B, reduction = data.draw(cells())
    reduction = data.draw(st.sampled_from([reduction, *FURTHER_OPERATORS]))
    start = cell.initial_state(B, reduction, places=data.draw(st.sampled_from(list(RULES))))
    text = random_tokens(data.draw(st.integers(0, 99)), B, T := data.draw(st.integers(1, 18)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, T), min_size=B, max_size=B)))
    cut = data.draw(st.integers(0, T))
    expected, end = step_loop(cell, text, start, lengths)
    logits, state = cell(text, start, lengths=lengths)
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    assert state.places == start.places
    first, middle = cell(text[:, :cut], start, lengths=lengths.clamp(max=cut))
    rest, state = cell(text[:, cut:], middle.clone().select(list(range(B))), lengths=(lengths - cut).clamp(min=0))
    assert_close(torch.cat((first, rest), 1), expected, 1e-8)
    assert_same(state, end, 1e-8)
    scanned, trace = cell.scan(text, start, lengths=lengths)
    assert_close(scanned, expected, 1e-8)
    assert_same(trace.at(T), end, 1e-8)
    assert_same(trace.at(cut), middle, 1e-8)
    modified = start.clone()
    for t in range(T):
        _, modified = cell.step_(text[:, t].masked_fill(t >= lengths, 0), modified, active=t < lengths)
    assert_same(modified, end, 1e-8)
    token, before = text[:, 0], end.clone()
    cell(text, end)
    assert_same(end, before)  # the state has spare rows, into which a call must not write
    assert_close(cell.step(token, trace.at(T))[0], cell.step(token, end)[0], 1e-8)


@pytest.mark.parametrize("rope", [ROPES["default"], ROPES["yarn"]], ids=["default", "yarn"])
@pytest.mark.parametrize("operator", ["window:0", "window:5", "sinks:6:2", "random:9", "full"])
def test_operators_that_need_no_weights_are_unrolled_in_blocks(operator, rope, monkeypatch):
    """The text is longer than a block. Rows at a distance other than that in the text are rotated for single queries."""
    monkeypatch.setattr("msrnn.state.position_remapping.MAX_KEY_ELEMENTS", 64 * 2 * 2 * 6 * 4)  # four rows of a block at once
    cell, text = tiny_cell(rope=rope), random_tokens(3, 2, 70)
    for places in RULES:
        start = cell.initial_state(2, operator, places=places)
        expected, end = step_loop(cell, text, start)
        logits, state = cell(text, start)
        assert_close(logits, expected, 1e-8)
        assert_same(state, end, 1e-8)
        ragged, _ = cell(text, start, lengths=torch.tensor([70, 33]))
        assert_close(ragged[1, :33], expected[1, :33], 1e-8)
        scanned, trace = cell.scan(text, start)
        assert_close(scanned, expected, 1e-8)
        assert_same(trace.at(70), end, 1e-8)
        rest, after = cell(text[:, 50:], trace.at(50))
        assert_close(rest, expected[:, 50:], 1e-8)
        assert_same(after, end, 1e-8)


@pytest.mark.parametrize("at_once", [1, 4])
def test_rows_rotated_for_single_queries_are_bounded(at_once, monkeypatch):
    """Under ``compressed`` many rows have another distance than in the text, and each is rotated for each query."""
    module, sizes = "msrnn.state.position_remapping", []
    cell, text = tiny_cell(), random_tokens(3, 2, 60)
    start = cell.initial_state(2, "sinks:30:20", places="compressed")
    _, read = cell(text, start)
    expected, _ = step_loop(cell, text[:, :8], read)
    limit = at_once * 8 * 2 * 2 * 6  # rows × tokens × batch × key heads × elements
    rotate = position_remapping.apply_rotary
    monkeypatch.setattr(f"{module}.MAX_KEY_ELEMENTS", limit)
    monkeypatch.setattr(
        f"{module}.apply_rotary", lambda x, cos_sin: sizes.append((rotated := rotate(x, cos_sin)).numel()) or rotated
    )
    logits, _ = cell(text[:, :8], read)
    assert_close(logits, expected, 1e-8)
    assert sizes.count(limit) >= 4 // at_once
    whole = max(2 * 2 * (30 + 8) * 6, 2 * 4 * 8 * 6)  # all keys or all queries, each at one position
    assert max(sizes) <= max(limit, whole)


def test_rows_are_rotated_token_by_token_only_if_necessary(monkeypatch):
    calls, rotate = [], PositionRemapping.rotate
    monkeypatch.setattr(PositionRemapping, "rotate", lambda *args: calls.append(1) or rotate(*args))
    for operator, rope, expected in (
        ("sinks:6:2", "default", 0),
        ("random:6", "yarn", 0),
        ("sinks:6:2", "dynamic", 40),
        ("tova:6", "default", 40),
        ("keydiff:6", "default", 40),
    ):
        cell = tiny_cell(rope=ROPES[rope])
        cell(random_tokens(3, 1, 20), cell.initial_state(1, operator, places="inside"))
        assert len(calls) == expected, operator
        calls.clear()


@given(st.data())
@examples(8)
def test_speculative_decoding_writes_the_tokens_of_plain_decoding(data):
    cell, B, reduction = data.draw(cells())
    reduction = data.draw(st.sampled_from([reduction, *FURTHER_OPERATORS]))
    start = cell.initial_state(B, reduction, places=data.draw(st.sampled_from(list(RULES))))
    text = random_tokens(data.draw(st.integers(0, 99)), B, 6, vocab=5)
    plain, end, _ = msrnn.generate(cell, text, start, max_new_tokens=12)
    expected, after = step_loop(cell, torch.cat((text, plain), 1), start)
    assert plain.equal(expected[:, 5:-1].argmax(-1))
    assert_same(end, after, 1e-8)
    for new, state, _, _ in (
        msrnn.jacobi(cell, text, start, max_new_tokens=12, block=5),
        msrnn.lookahead(cell, text, start, max_new_tokens=12, window=3, ngram=3, guesses=2),
    ):
        assert new.equal(plain)
        assert_same(state, end, 1e-8)
        assert state.places == start.places


@pytest.mark.parametrize("places", RULES)
def test_gradients_of_a_call_equal_those_of_the_step_loop(places):
    cell, text = tiny_cell(frozen=False), random_tokens(3, 1, 12)
    gradients = []
    for read in (cell, lambda text, state: step_loop(cell, text, state)):
        logits, _ = read(text, cell.initial_state(1, "tova:4", places=places))
        gradients.append(torch.autograd.grad(logits.logsumexp(-1).sum(), list(cell.parameters())))
    for found, expected in zip(*gradients, strict=True):
        assert_close(found, expected, 1e-8)


@pytest.mark.parametrize("places", RULES)
def test_learned_rows_are_attended_to_without_a_position(places):
    cell, text = tiny_cell(rope=ROPES["yarn"]), random_tokens(3, 2, 25)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(2, 2, 2, 6, generator=generator).double() for _ in range(2))
    rows = {"keys": keys, "values": values, "positions": torch.full((2, 2, 2), -2)}
    rows |= {"accumulated_attention": torch.zeros(2, 2, 2).double()}
    start = cell.initial_state(2, "h2o:5", places=places)
    plain, _ = cell(text, start)
    start = start.with_layers(replace(H.with_rows(rows, H.clock, no_empty_rows=True), n_learned=2) for H in start)
    expected, end = step_loop(cell, text, start)
    logits, state = cell(text, start)
    scanned, trace = cell.scan(text, start)
    for found, after in ((logits, state), (scanned, trace.at(25))):
        assert_close(found, expected, 1e-8)
        assert [H.positions.sort().values.tolist() for H in after] == [H.positions.sort().values.tolist() for H in end]
    assert (plain - expected).abs().max() > 1e-3


@pytest.mark.parametrize("operator", ["full", "window:6", "sinks:6:2", "tova:6", "h2o:6"])
@pytest.mark.parametrize("places", ["absolute", "inside", "compressed"])
def test_a_call_does_not_modify_a_state_with_a_spare_row(places, operator):
    """Steps leave spare rows behind those of a state."""
    cell, text = tiny_cell(), random_tokens(3, 2, 20)
    _, state = cell(text[:, :9], cell.initial_state(2, operator, places=places))
    for t in range(9, 12):
        _, state = cell.step(text[:, t], state)
    before = state.clone()
    for stop in (13, 20):
        cell(text[:, 12:stop], state)
        cell.scan(text[:, 12:stop], state)
        assert_same(state, before, 0)
