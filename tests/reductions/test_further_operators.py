"""Operators of further papers: each against a plain loop written from its paper, then laws of all operators."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import stochastic_rules, value_aware_rules, window_rules
from support.naive_operators import cheapest, dot, naive, softmax
from support.stochastic_rules import draws
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import (
    A2SF,
    CAOTE,
    RKV,
    TOVA,
    VATP,
    CaM,
    DropKV,
    KeyDiff,
    Keyformer,
    Knorm,
    LagKV,
    LastQueries,
    MorphKV,
    Observation,
    Random,
    Scissorhands,
    VaSE,
    parse_reduction,
    pyramid,
)
from msrnn.diagnostics.retention import retained_fraction
from msrnn.recurrence import block_evictions, unroll
from msrnn.reductions.hash_rng import uniform


def distinct(seed, B, T):
    """Return ``(B, T)`` ids without repetition, because the keys of equal tokens have equal norms in the first layer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(50, generator=generator)[:T] for _ in range(B)])


def random(seed):
    def at(l):
        def rule(t, h, rows, logits, full):
            return cheapest(rows, lambda row: draws(seed, l, h, row.position, t)) if full else None

        return rule

    return at


def knorm(l):
    return lambda t, h, rows, logits, full: max(rows, key=lambda row: dot(row.key, row.key)) if full else None


def keydiff(l):
    def rule(t, h, rows, logits, full):
        if not full:
            return None
        units = [[x / math.sqrt(dot(row.key, row.key)) for x in row.key] for row in rows]
        mean = [fmean(column) for column in zip(*units, strict=True)]
        return max(zip(rows, units, strict=True), key=lambda pair: dot(pair[1], mean) / math.sqrt(dot(mean, mean)))[0]

    return rule


def last_queries(window):
    def rule(t, h, rows, logits, full):
        free = [row for row in rows if row.position <= t - window]
        last = range(t - window + 1, t + 1)
        return cheapest(free or rows, lambda row: math.fsum(row.by_query.get(s, 0.0) for s in last)) if full else None

    return lambda l: rule


def morphkv(window, fuse):
    def rule(t, h, rows, logits, full):
        for row, share in zip(rows, softmax([math.fsum(z) for z in zip(*logits, strict=True)]), strict=True):
            row.by_query[t] = share  # instead of the mean
        free = [row for row in rows if row.position <= t - window]
        last = range(t - window + 1, t + 1)
        return cheapest(free or rows, lambda row: fuse(row.by_query.get(s, 0.0) for s in last)) if full else None

    return lambda l: rule


def scissorhands(recent, history):
    def rule(t, h, rows, logits, full):
        def counter(row):
            if row.position > t - recent:
                return 0
            return sum(share < 1 / (s + 1) for s, share in row.by_query.items() if s > t - history)

        return cheapest(rows, lambda row: -counter(row)) if full else None

    return lambda l: rule


def keyformer(recent, steps, seed):
    def at(l):
        total = {}

        def rule(t, h, rows, logits, full):
            tau = 1 + min(1, t / steps)
            noisy = []
            for g, z in enumerate(logits):
                noise = [-math.log(-math.log(draws(seed, l, h * len(logits) + g, row.position, t))) for row in rows]
                noisy.append(softmax([(a + b) / tau for a, b in zip(z, noise, strict=True)]))
            for i, row in enumerate(rows):
                total[h, row.position] = total.get((h, row.position), 0.0) + fmean(y[i] for y in noisy)
            free = [row for row in rows if row.position <= t - recent]
            return cheapest(free or rows, lambda row: total[h, row.position]) if full else None

        return rule

    return at


def cam(sinks, into, seed):
    def at(l):
        def rule(t, h, rows, logits, full):
            if not full:
                return None
            gone = next(row for row in rows if row.position >= sinks)
            after = [row for row in rows if row.position > gone.position]
            likely = gone.by_query[t] / fmean(row.by_query[t] for row in after)
            if draws(seed, l, h, gone.position, t) < min(1, likely):
                for row in after[:into]:
                    row.value = [x + y / into for x, y in zip(row.value, gone.value, strict=True)]
            return gone

        return rule

    return at


CASES = {
    "random": (Random(5), random(0)),
    "random, seed 3": (Random(6, seed=3), random(3)),
    "knorm": (Knorm(5), knorm),
    "keydiff": (KeyDiff(6), keydiff),
    "last queries": (LastQueries(7, window=3), last_queries(3)),
    "last queries, all rows their own": (LastQueries(4, window=4), last_queries(4)),
    "morphkv": (MorphKV(7, window=3), morphkv(3, math.fsum)),
    "morphkv-max": (MorphKV(6, window=2, max_fusion=True), morphkv(2, max)),
    "scissorhands": (Scissorhands(6, recent=2), scissorhands(2, 400)),
    "scissorhands, short history": (Scissorhands(6, recent=0, history=5), scissorhands(0, 5)),
    "scissorhands, history in two numbers": (Scissorhands(4, recent=1, history=30), scissorhands(1, 30)),
    "keyformer": (Keyformer(7, steps=9), keyformer(2, 9, 0)),
    "keyformer, seed 2": (Keyformer(6, recent=0, steps=100, seed=2), keyformer(0, 100, 2)),
    "cam": (CaM(6, sinks=2, merge_window=3), cam(2, 3, 0)),
    "cam, seed 1": (CaM(5, sinks=1, merge_window=9, seed=1), cam(1, 9, 1)),
    "per layer": (MorphKV((6, 4), window=2), morphkv(2, math.fsum)),
    "cam per layer": (CaM((4, 7), sinks=1, merge_window=2), cam(1, 2, 0)),
    "random per layer": (Random((3, 6)), random(0)),
    "keyformer, highest temperature": (Keyformer(7, steps=1), keyformer(2, 1, 0)),
    **stochastic_rules.CASES,
    **value_aware_rules.CASES,
    **window_rules.CASES,
}
OPERATORS = [operator for operator, _ in CASES.values()]


@dataclass(frozen=True)
class EvictedToAll(TOVA):
    """A user-defined operator: the evicted value is merged into all other rows."""

    merges_values: ClassVar[bool] = True

    def merge(self, seen, values, row):
        return values + values.gather(2, row[..., None, None].expand(-1, -1, 1, values.shape[3]))


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


# Random numbers.


def test_hash_rng_is_uniform_and_depends_on_all_arguments():
    head, position = torch.arange(8)[:, None], torch.arange(5000)
    drawn = uniform(0, 0, head, position, torch.tensor(7))
    assert drawn.shape == (8, 5000)
    assert drawn.min() > 0
    assert drawn.max() < 1
    assert drawn[3, 41].item() == draws(0, 0, 3, 41, 7)
    counts = torch.histc(drawn, 20, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 50  # χ² with 19 degrees of freedom
    for other in (uniform(1, 0, head, position, 7), uniform(0, 1, head, position, 7), uniform(0, 0, head, position, 8)):
        assert (other == drawn).float().mean() < 1e-3
        assert torch.corrcoef(torch.stack((other.flatten(), drawn.flatten())))[0, 1].abs() < 0.03
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < 0.06
    big = uniform(10**18 - 1, 999, head, position + 2**40, torch.tensor(2**62))
    assert big.mean().item() == pytest.approx(0.5, abs=0.02)


def test_random_is_repeatable_with_mean_lifetime_equal_to_size():
    cell, text = tiny_cell(n_layers=1, n_kv_heads=4), random_tokens(1, 1, 400)
    ends = [cell(text, cell.initial_state(1, Random(20, seed)))[1] for seed in (0, 0, 1)]
    assert retained_positions(ends[0]) == retained_positions(ends[1]) != retained_positions(ends[2])
    age = torch.stack([399 - H.positions.double() for state in ends[1:] for H in state])
    assert age.mean().item() == pytest.approx(20, rel=0.25)  # geometric, 1 in 21 a step
    assert retained_fraction(ends[0], 400).sum().item() == pytest.approx(20)
    four = retained_positions(cell(text, cell.initial_state(1, "random:20"))[1])[0][0]
    assert all(a != b for i, a in enumerate(four) for b in four[:i])  # heads draw apart
    layers = retained_positions(tiny_cell(n_layers=2)(text, tiny_cell(n_layers=2).initial_state(1, Random(20)))[1])
    assert layers[0] != layers[1]


# Sizes, spec strings, refusals.


def test_pyramid_decreases_linearly_with_the_given_mean():
    sizes = pyramid(512, 30)
    assert sizes[0] == 998
    assert sizes[-1] == round(512 / 20)
    steps = [a - b for a, b in pairwise(sizes)]
    assert max(steps) - min(steps) <= 1
    assert sum(sizes) / 30 == pytest.approx(512, abs=0.5)
    assert pyramid(64, 3, window=32, beta=2) == (80, 64, 48)
    assert pyramid(7, 1) == (7,)
    assert min(pyramid(4, 8)) == 1
    cell = tiny_cell()
    state = cell(random_tokens(1, 1, 20), cell.initial_state(1, msrnn.TOVA(pyramid(5, 2, beta=4))))[1]
    assert [H.keys.shape[2] for H in state] == [9, 1]


@pytest.mark.parametrize(
    ("build", "thing"),
    [
        (lambda: pyramid(0, 3), "size is 0"),
        (lambda: pyramid(4, True), "n_layers is True"),
        (lambda: pyramid(4, 2, window=4), "window is 4"),
        (lambda: pyramid(4, 2, beta=0.5), "beta is 0.5"),
        (lambda: Random(4, seed=-1), "Random: seed is -1"),
        (lambda: Random(4, layer="a"), "Random: layer is 'a'"),
        (lambda: LastQueries(4), "LastQueries: window is 32; expected an int from 1 to 4"),
        (lambda: MorphKV(64, max_fusion=1), "MorphKV: max_fusion is 1"),
        (lambda: MorphKV((64, 8)), "MorphKV: window is 32"),
        (lambda: Scissorhands(4), "Scissorhands: recent is 10"),
        (lambda: Scissorhands(64, history=0), "Scissorhands: history is 0"),
        (lambda: Keyformer(4, recent=5), "Keyformer: recent is 5"),
        (lambda: Keyformer(4, steps=0), "Keyformer: steps is 0"),
        (lambda: CaM(4), "CaM: sinks is 4"),
        (lambda: CaM(8, merge_window=0), "CaM: merge_window is 0"),
        (lambda: Knorm(0), "Knorm: size is 0"),
        (lambda: CAOTE(4, per_head=1), "CAOTE: per_head is 1"),
        (lambda: VATP(4, recent=5), "VATP: recent is 5"),
        (lambda: VATP(4, sinks=-1), "VATP: sinks is -1"),
        (lambda: VaSE(8, window=6, large=3), "VaSE: window 6 and 4 rows of large or sinks exceed size 8"),
        (lambda: VaSE(8, window=2, large=0), "VaSE: large is 0; expected an int from 1 to 8"),
        (lambda: A2SF(4, forgetting=1.5), "A2SF: forgetting is 1.5"),
        (lambda: RKV(8, importance="a"), "RKV: importance is 'a'"),
        (lambda: RKV(8, threshold=2), "RKV: threshold is 2"),
        (lambda: LagKV(8), "LagKV: size is 8"),
        (lambda: LagKV(20, lag=9), "LagKV: lag is 9; expected an int from 2 to 8"),
    ],
)
def test_invalid_settings_are_refused(build, thing):
    with pytest.raises(msrnn.Error, match=thing):
        build()


def test_the_rows_that_do_not_count_in_r_kv_may_be_more_than_int32_holds():
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(1, 2, 9, 4, generator=generator, dtype=torch.float64)
    positions = torch.arange(9).expand(1, 2, 9)
    observation = Observation(keys.new_zeros(1, 2, 1, 9), positions, torch.tensor([9]), {}, keys)
    every, more = (RKV(size, threshold=-1, recent_share=1).redundancy(observation) for size in (9, 2**32))
    assert more.equal(every)
    assert not more.equal(RKV(9, threshold=-1, recent_share=0).redundancy(observation))


FORMS = {
    "random:512": Random(512),
    "random:512:7": Random(512, seed=7),
    "knorm:512": Knorm(512),
    "keydiff:512": KeyDiff(512),
    "last-queries:512": LastQueries(512),
    "last-queries:512:64": LastQueries(512, window=64),
    "morphkv:512": MorphKV(512),
    "morphkv-max:512:16": MorphKV(512, window=16, max_fusion=True),
    "scissorhands:512": Scissorhands(512),
    "scissorhands:512:10:100": Scissorhands(512, history=100),
    "keyformer:512": Keyformer(512),
    "keyformer:512:0:64:3": Keyformer(512, recent=0, steps=64, seed=3),
    "cam:512": CaM(512),
    "cam:512:1:16": CaM(512, sinks=1, merge_window=16),
    "caote:512": CAOTE(512),
    "caote-layer:512": CAOTE(512, per_head=False),
    "dropkv:512:16": DropKV(512, window=16),
    "vatp:512": VATP(512),
    "vase:512": VaSE(512),
    "vase:512:16:64:2:3": VaSE(512, window=16, large=64, sinks=2, seed=3),
    "vatp:512:0:2": VATP(512, recent=0, sinks=2),
    "a2sf:512:0.5": A2SF(512, forgetting=0.5),
    "r-kv:512": RKV(512),
    "r-kv:512:4:0.2": RKV(512, window=4, importance=0.2),
    "lagkv:512": LagKV(512),
    "lagkv:512:64:0": LagKV(512, lag=64, sinks=0),
}


@pytest.mark.parametrize(("text", "operator"), FORMS.items(), ids=FORMS)
def test_spec_string_round_trip(text, operator):
    assert parse_reduction(text) == operator
    assert str(operator) == text
    state = tiny_cell().initial_state(1, text)
    assert [str(H.reduction).partition(":layer=")[0] for H in state] == [text, text]
    assert f"  0…1     {text} " in repr(state)


@pytest.mark.parametrize("text", ["random", "random:4:1:1", "knorm:4:1", "last-queries:4", "cam:4", "keyformer:x"])
def test_invalid_spec_string_is_refused(text):
    with pytest.raises(msrnn.Error):
        parse_reduction(text)
