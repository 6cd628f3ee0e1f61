"""Operators of further papers: each against a plain loop written from its paper, then laws of all operators."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.merging_operator import EvictedToAll
from support.naive_operators import naive
from support.paper_rules import CASES, OPERATORS, distinct
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import CaM, KeyDiff, LastQueries, Random, Scissorhands
from msrnn.recurrence import block_evictions, unroll


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (4, 1)], ids=str)
@pytest.mark.parametrize(("operator", "rule"), CASES.values(), ids=CASES)
def test_operator_equals_the_rule_of_its_paper(operator, rule, heads):
    cell, text = tiny_cell(n_heads=heads[0], n_kv_heads=heads[1]), distinct(3, 2, 40 if "scissor" in str(operator) else 22)
    logits, state = step_loop(cell, text, cell.initial_state(2, operator))
    for b in range(2):
        ruled, kept = naive(cell, text[b], rule, lambda l: operator.for_layer(l).size)
        assert [retained_positions(state)[l][b] for l in range(2)] == kept
        assert_close(logits[b], ruled)


def test_rules_of_different_operators_differ():
    cell, text = tiny_cell(), distinct(3, 1, 40)
    ends = [
        retained_positions(step_loop(cell, text, cell.initial_state(1, replace(o, size=7)))[1])
        for o in OPERATORS[:15]
        if "cam" not in str(o)
    ]
    assert all(a != b for i, a in enumerate(ends) for b in ends[:i])


@st.composite
def places(draw):
    operator = draw(st.sampled_from([*OPERATORS, EvictedToAll(4), EvictedToAll((2, 6), per_head=True)]))
    heads, shared = draw(st.sampled_from([(2, 1), (4, 2), (3, 3), (6, 2)]))
    cell = tiny_cell(seed=draw(st.integers(0, 99)), n_heads=heads, n_kv_heads=shared)
    B, T = draw(st.integers(1, 3)), draw(st.integers(0, 24))
    lengths = torch.tensor(draw(st.lists(st.integers(0, T), min_size=B, max_size=B)), dtype=torch.int64)
    return cell, operator, distinct(draw(st.integers(0, 999)), B, T), lengths, draw(st.integers(0, T))


@given(places(), st.sampled_from([3, 7, 64]))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_many_token_path_equals_step_loop(place, block):
    """For every split; the state of the trace after any token equals that of the step loop."""
    cell, operator, text, lengths, cut = place
    B = len(text)
    whole = unroll.BLOCK
    unroll.BLOCK = block
    try:
        by_step, end = step_loop(cell, text, cell.initial_state(B, operator), lengths)
        logits, state = cell(text, cell.initial_state(B, operator), lengths=lengths)
        assert_close(logits, by_step, 1e-8)
        assert_same(state, end, 1e-8)
        first, state = cell(text[:, :cut], cell.initial_state(B, operator), lengths=lengths.clamp(max=cut))
        second, state = cell(text[:, cut:], state, lengths=(lengths - cut).clamp(min=0))
        assert_close(torch.cat((first, second), 1), by_step, 1e-8)
        assert_same(state, end, 1e-8)
        scanned, trace = cell.scan(text, lengths=lengths, state=cell.initial_state(B, operator), weights=True)
        assert_close(scanned, by_step, 1e-8)
        _, before = step_loop(cell, text[:, :cut], cell.initial_state(B, operator), lengths.clamp(max=cut))
        assert_same(trace.at(cut), before, 1e-8)
        assert_same(trace.at(lengths), end, 1e-8)
    finally:
        unroll.BLOCK = whole


@pytest.mark.parametrize("operator", [EvictedToAll(4), EvictedToAll((2, 6), per_head=True)], ids=["layer", "head"])
def test_values_are_not_merged_without_an_eviction(operator):
    cell, text, lengths = tiny_cell(), random_tokens(5, 4, 14), torch.tensor([14, 9, 3, 0])
    by_step, end = step_loop(cell, text, cell.initial_state(4, operator), lengths)
    for b, n in enumerate(lengths.tolist()):
        alone, own = step_loop(cell, text[b : b + 1, :n], cell.initial_state(1, operator))
        assert_close(by_step[b, :n], alone[0])
        assert_same(end.select([b]), own, 1e-9)
    scanned, trace = cell.scan(text, cell.initial_state(4, operator), lengths=lengths)
    assert_close(scanned, by_step, 1e-8)
    assert_same(trace.at(14), end, 1e-8)


@dataclass(frozen=True)
class Thirds(msrnn.Reduction):
    """A user-defined operator that reads positions, which differ between heads, and statistics that are not additive."""

    stat_names: ClassVar[tuple[str, ...]] = ("best",)

    def update(self, seen):
        return {"best": torch.maximum(seen.row_stats["best"], seen.weights.mean(2) * (1 + seen.positions % 3))}

    def score(self, seen):
        return seen.row_stats["best"] + (seen.positions % 3 == 0)


@pytest.mark.parametrize("operator", [Thirds(6), Random(6)], ids=["own", "random"])
def test_heads_may_retain_different_positions(operator, monkeypatch):
    monkeypatch.setattr(unroll, "BLOCK", 5)
    cell, text = tiny_cell(), distinct(5, 2, 40)
    by_step, end = step_loop(cell, text, cell.initial_state(2, operator))
    logits, state = cell(text, cell.initial_state(2, operator))
    assert_close(logits, by_step, 1e-8)
    assert_same(state, end, 1e-8)


def test_scores_independent_of_evictions_are_proposed_right(monkeypatch):
    calls, score_tokens = [], block_evictions.score_tokens
    cell, text = tiny_cell(), distinct(5, 1, 40)
    _, state = cell(text[:, :20], cell.initial_state(1, "random:12"))
    monkeypatch.setattr(block_evictions, "score_tokens", lambda *a, **k: calls.append(1) or score_tokens(*a, **k))
    cell(text[:, 20:], state)
    assert len(calls) == 2 * 2  # per layer: without evictions, and with the proposal


@pytest.mark.parametrize("operator", OPERATORS, ids=CASES)
def test_saved_in_place_and_batched_states_agree(operator, tmp_path):
    cell, text = tiny_cell(), distinct(5, 3, 30)
    lengths = torch.tensor([20, 3, 12])
    _, state = cell(text[:, :20], cell.initial_state(3, operator), lengths=lengths)
    state.save(tmp_path / "state")
    loaded = msrnn.load_state(tmp_path / "state")
    assert_same(loaded, state)
    straight, after = step_loop(cell, text[:, 20:], state)
    on, end = cell(text[[1, 2, 0], 20:], loaded.select([1, 2, 0]))
    assert_close(on[[2, 0, 1]], straight, 1e-8)
    assert_same(end.select([2, 0, 1]), after, 1e-8)
    moving = state.clone()
    for t, token in enumerate(text[:, 20:].T):
        read, moving = cell.step_(token, moving)
        assert_close(read, straight[:, t])
    assert_same(moving, after, 1e-9)
    for b, n in enumerate(lengths.tolist()):
        alone, own = cell(torch.cat((text[b, :n], text[b, 20:]))[None], cell.initial_state(1, operator))
        assert_close(alone[0, n:], straight[b], 1e-8)
        assert_same(own, after.select([b]), 1e-8)


@pytest.mark.parametrize("operator", [Random(4), KeyDiff(4), CaM(4, sinks=1, merge_window=2), LastQueries(4, 2)], ids=str)
def test_gradients_are_those_of_the_step_loop(operator):
    """Gradients flow through merged values as well."""
    cell, text = tiny_cell(frozen=False), distinct(5, 2, 12)
    weight = torch.randn(2, 12, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradients(read):
        cell.zero_grad()
        (read(cell.initial_state(2, operator))[0] * weight).sum().backward()
        return {name: x.grad.clone() for name, x in cell.named_parameters()}

    stepped = gradients(lambda state: step_loop(cell, text, state))
    for name, x in gradients(lambda state: cell(text, state)).items():
        assert_close(x, stepped[name], 1e-8)


def test_step_does_not_edit_its_input():
    cell, text = tiny_cell(), distinct(5, 1, 9)
    for operator in (CaM(4, sinks=1, merge_window=2), LastQueries(4, 2), Scissorhands(4, recent=1)):
        _, state = cell(text, cell.initial_state(1, operator))
        before = [{name: x.clone() for name, x in H.rows.items()} for H in state]
        for token in text.T:
            cell.step(token, state)
        assert all(x.equal(H.rows[name]) for H, rows in zip(state, before, strict=True) for name, x in rows.items())


def test_float32_and_16_bit_states():
    for dtype in (torch.float32, torch.bfloat16):
        cell = tiny_cell(dtype=dtype)
        for operator in OPERATORS:
            logits, state = cell(distinct(1, 2, 20), cell.initial_state(2, operator))
            assert logits.isfinite().all()
            for H in state:
                assert all(x.dtype == torch.float32 for x in H.row_stats.values())
                assert H.values.dtype == dtype
