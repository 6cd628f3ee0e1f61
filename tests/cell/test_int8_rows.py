"""8-bit rows: every path against a naive oracle and against the step loop."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import assert_unchanged, cells, copy_tensors, draw_text, examples
from support.generated_operators import generate
from support.packed_models import dequantised, packed_cell
from support.tiny_models import (
    assert_close,
    assert_same,
    random_tokens,
    retained_positions,
    step_loop,
    tiny_cell,
    tiny_decoder,
)

import msrnn
from msrnn import Full, Window
from msrnn.recurrence import unroll

OPERATORS = ["full", "window:5", "sinks:6:2", "h2o:6", "h2o-layer:6", "tova:5", "tova-head:5"]
OPERATORS += ["keydiff:5", "knorm:5", "cam:6:2", "keyformer:6", "morphkv:6:2", "caote:5", "dropkv:6:2"]


def rounded(x):
    """Round ``x (K, D)`` to 255 levels per head, as numbers."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).float().double()
    return (x / scale).round() * scale


def naive(cell, text, reduction):
    """Return the logits ``(T, V)`` and the positions retained per layer: lists of rounded rows, one token after another."""
    size, N, K = reduction.size, cell.config.n_heads, cell.config.n_kv_heads
    caches, logits = [[] for _ in cell.layers], []
    for t, token in enumerate(text):
        x = cell.embed_tokens(token, torch.tensor(t))
        turn = cell.position_encodings[0].prepare(torch.tensor(t), x.dtype)
        for layer, cache in zip(cell.layers, caches, strict=True):
            q, k, v = layer.project_qkv(x, turn)  # (N, D), (K, D)
            cache.append((t, rounded(k), rounded(v)))
            keys, values = (torch.stack([row[i] for row in cache]) for i in (1, 2))  # (R, K, D)
            heads = [h // (N // K) for h in range(N)]
            weights = torch.stack([(keys[:, g] @ q[h] * q.shape[-1] ** -0.5).softmax(0) for h, g in enumerate(heads)])
            out = torch.stack([weights[h] @ values[:, g] for h, g in enumerate(heads)])
            x = layer.post_attention(x, out)
            if size is not None and len(cache) > size:
                del cache[0 if isinstance(reduction, Window) else int(weights.mean(0).argmin())]
        logits.append(cell.compute_logits(x))
    return torch.stack(logits), [[row[0] for row in cache] for cache in caches]


@pytest.mark.parametrize("spec", ["full", "window:4", "tova:4"])
def test_naive_oracle(spec):
    cell, text = tiny_cell(), random_tokens(7, 1, 22)
    state = cell.initial_state(1, spec, dtype=torch.int8)
    expected, retained = naive(cell, text[0], msrnn.parse_reduction(spec))
    for logits, end in (step_loop(cell, text, state), cell(text, state)):
        assert_close(logits[0], expected, 1e-8)
        assert retained_positions(end) == [[[positions] * 2] for positions in retained]
        assert end.dtype == torch.int8
    exact, _ = cell(text, cell.initial_state(1, spec))
    assert 1e-4 < (expected - exact[0]).abs().mean() < 0.1


def assert_paths_agree(cell, text, lengths, start):
    """Compare step, step in place, many tokens, two calls, scan, and states of the trace."""
    before = copy_tensors(start)
    expected, end = step_loop(cell, text, start, lengths)
    logits, state = cell(text, start, lengths=lengths)
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-6)  # the same integers
    half = text.shape[1] // 2
    first, middle = cell(text[:, :half], start, lengths=lengths.clamp(max=half))
    rest, last = cell(text[:, half:], middle, lengths=(lengths - half).clamp(min=0))
    assert_close(torch.cat((first, rest), dim=1), expected, 1e-8)
    assert_same(last, end, 1e-6)
    _, trace = cell.scan(text, start, lengths=lengths)
    for n in {0, half, text.shape[1]}:
        assert_same(trace.at(n), cell(text[:, :n], start, lengths=lengths.clamp(max=n))[1], 1e-6)
    own = start.clone()
    for t in range(text.shape[1]):
        _, own = cell.step_(text[:, t], own, active=t < lengths)
    assert_same(own, end, 1e-6)
    assert_unchanged(start, before)
    return end


@pytest.mark.parametrize("places", ["absolute", "inside", "compressed"])
@pytest.mark.parametrize("reduction", OPERATORS)
def test_all_paths_agree(reduction, places):
    cell, text = tiny_cell(), random_tokens(5, 3, 21)
    start = cell.initial_state(3, reduction, dtype=torch.int8, places=places)
    end = assert_paths_agree(cell, text, torch.tensor([21, 8, 0]), start)
    assert {H.keys.dtype for H in end} == {H.values.dtype for H in end} == {torch.int8}


@given(st.data())
@examples(25)
def test_all_paths_agree_in_random_cells(data):
    cell, B, reduction = data.draw(cells())
    text = draw_text(data.draw, B)
    lengths = torch.tensor([data.draw(st.integers(0, text.shape[1])) for _ in range(B)])
    assert_paths_agree(cell, text, lengths, cell.initial_state(B, reduction, dtype="int8"))


@pytest.mark.parametrize("seed", [*range(7), *range(8, 13)])  # 7 breaks the contract
def test_all_paths_agree_for_random_classes(seed):
    operator, _ = generate(seed)
    cell, text = tiny_cell(), random_tokens(5, 2, 16)
    assert_paths_agree(cell, text, torch.tensor([16, 9]), cell.initial_state(2, operator, dtype=torch.int8))


@pytest.mark.parametrize("reduction", ["tova:5", "keydiff:5", "full"])
def test_blocks_do_not_change_the_result(reduction, monkeypatch):
    cell, text = tiny_cell(), random_tokens(5, 1, 40)
    start = cell.initial_state(1, reduction, dtype=torch.int8)
    expected, end = cell(text, start)
    monkeypatch.setattr(unroll, "BLOCK", 3)
    monkeypatch.setattr(unroll, "WEIGHT_FREE_BLOCK", 4)
    logits, state = cell(text, start)
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-6)
    _, trace = cell.scan(text, start)
    assert_same(trace.at(29), cell(text[:, :29], start)[1])


def test_values_are_rounded_again_only_where_a_merge_changes_them():
    cell, text = tiny_cell(), random_tokens(5, 1, 12)
    state = cell(text, cell.initial_state(1, "cam:6:2:2", dtype=torch.int8))[1]
    before = state
    _, state = cell.step(text[:, 0], state)
    changed = stays = 0
    for G, H in zip(before, state, strict=True):
        for k in range(2):
            old = {int(p): G.values[0, k, i] for i, p in enumerate(G.positions[0, k])}
            for i, p in enumerate(H.positions[0, k].tolist()):
                if p in old:
                    same = H.values[0, k, i].equal(old[p])
                    changed, stays = changed + (not same), stays + same
    assert changed > 0
    assert stays > 0


@pytest.mark.parametrize("reduction", ["full", "tova:5", "h2o:6"])
def test_decoding_methods_agree_and_continue(reduction):
    cell, text = tiny_cell(), random_tokens(5, 2, 9)
    text[1, :] = text[0, 0]
    start = cell.initial_state(2, reduction, dtype=torch.int8)
    lengths = torch.tensor([9, 6])
    plain = msrnn.generate(cell, text, start, lengths=lengths, max_new_tokens=14)
    for method in (msrnn.lookahead, msrnn.jacobi):
        found = method(cell, text, start, lengths=lengths, max_new_tokens=14)
        assert found.tokens.equal(plain.tokens)
        assert_same(found.state, plain.state, 1e-6)
    ten = msrnn.generate(cell, text, start, lengths=lengths, max_new_tokens=10)
    more = msrnn.generate(cell, state=ten.state, logits=ten.logits, max_new_tokens=4)
    assert torch.cat((ten.tokens, more.tokens), dim=1).equal(plain.tokens)
    assert_same(more.state, plain.state, 1e-6)


@pytest.mark.parametrize("reduction", ["full", "tova:5"])
def test_branches_undo_and_batches(reduction):
    cell, text = tiny_cell(), random_tokens(5, 1, 12)
    _, state = cell(text, cell.initial_state(1, reduction, dtype=torch.int8))
    kept = copy_tensors(state)
    logits, three = cell.step(torch.tensor([7, 8, 9]), state.select([0, 0, 0]))
    alone, one = cell.step(torch.tensor([8]), state)
    assert_close(logits[1:2], alone)
    assert_same(three.select([1]), one)
    _, short = cell(text[:, :3], cell.initial_state(1, reduction, dtype=torch.int8))
    both = msrnn.State.cat([state, short])
    together, after = cell.step(torch.tensor([8, 8]), both)
    assert_close(together[:1], alone)
    assert_same(after.select([0]), one)
    assert_unchanged(state, kept)
    with pytest.raises(msrnn.Error, match=r"torch\.int8"):
        msrnn.State.cat([state, cell(text, cell.initial_state(1, reduction))[1]])


@pytest.mark.parametrize("fields", [{"persistent": 3}, {"memory_tokens": 2}, {"persistent": 2, "memory_tokens": 2}], ids=str)
def test_learned_rows_are_rounded_once(fields):
    cell, text = tiny_decoder(**fields), random_tokens(5, 2, 14)
    start = cell.initial_state(2, "tova:5", dtype=torch.int8)
    assert start.dtype == torch.int8
    exact = cell.initial_state(2, "tova:5")
    for H, G in zip(start, exact, strict=True):
        assert_close(H.dequantised(torch.float64)[0], torch.stack([torch.stack([rounded(k) for k in row]) for row in G.keys]))
    assert_paths_agree(cell, text, torch.tensor([14, 6]), start)
    assert_same(cell.refresh_learned_rows(start), start)


def test_recurrent_memory_of_8_bit_rows():
    cell, text = tiny_decoder(memory_tokens=2, recurrent=True, persistent=1), random_tokens(5, 2, 9)
    _, state = cell(text, cell.initial_state(2, "tova:5", dtype=torch.int8))
    following = cell.next_segment(state)
    exact = cell.next_segment(cell(text, cell.initial_state(2, "tova:5"))[1])
    assert following.dtype == torch.int8
    for H, G in zip(following, exact, strict=True):
        assert_close(H.dequantised(torch.float64)[1], G.values, 0.2)
    assert_paths_agree(cell, text, torch.tensor([9, 4]), following)


def test_positions_appended_to_keys_are_refused():
    with pytest.raises(msrnn.Error, match="alibi"):
        tiny_decoder(positions="alibi").initial_state(1, dtype=torch.int8)


@pytest.mark.parametrize("reduction", ["tova:5", "keydiff:5"])
def test_prefill_evicts_by_the_scores_of_rounded_rows(reduction):
    """All rows but five are evicted by the scores that the operator gives after the last token of an unbounded H."""
    cell, text = tiny_cell(), random_tokens(5, 1, 12)
    unbounded, _ = cell(text, cell.initial_state(1, Full(), dtype=torch.int8))
    logits, state = msrnn.prefill(cell, text, reduction, dtype="int8")
    assert_close(logits, unbounded[:, -1])
    assert state.dtype == torch.int8
    wide = msrnn.parse_reduction(f"{reduction.partition(':')[0]}:11")
    _, trace = cell.scan(text, cell.initial_state(1, wide, dtype=torch.int8), weights=True)
    for H, layer in zip(state, trace, strict=True):
        for k, positions in enumerate(H.positions[0].tolist()):
            scores = layer.scores[0, k % layer.scores.shape[1], -1]
            assert sorted(positions) == sorted(scores.argsort()[-5:].tolist())


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_cells_with_packed_weights(weights):
    cell, text = packed_cell(weights), random_tokens(5, 2, 14)
    start = cell.initial_state(2, "tova:5", dtype=torch.int8)
    end = assert_paths_agree(cell, text, torch.tensor([14, 6]), start)
    plain = dequantised(cell)
    state = plain.initial_state(2, "tova:5", dtype=torch.int8)
    for t, token in enumerate(text.T):
        _, state = plain.step(token, state, active=t < torch.tensor([14, 6]))
    assert_same(state, end, 1e-6)
    half = packed_cell(weights, dtype=None)
    logits, state = half(text, half.initial_state(2, "tova:5", dtype=torch.int8))
    assert logits.isfinite().all()
    assert state.dtype == torch.int8
