"""The operators of the TOVA paper, against a dense decoder and eviction rules in plain Python."""

import pytest
import torch
from support.eviction_rules import dense_decoder, full, h2o, sinks, tova, tova_head, window
from support.one_token import reduced, rows_at
from support.tiny_models import ROPES, assert_close, random_tokens, retained_positions, step_loop, tiny_cell

from msrnn import H2O, TOVA, Sinks, Window

CASES = {
    "full": ("full", lambda l: full()),
    **{f"window:{n}": (Window(n), lambda l, n=n: window(n)) for n in (0, 1, 5)},
    "sinks:2:1": (Sinks(2, sinks=1), lambda l: sinks(2, 1)),
    "sinks:7": (Sinks(7), lambda l: sinks(7, 4)),
    **{f"tova:{n}": (TOVA(n), lambda l, n=n: tova(n)) for n in (1, 2, 6)},
    **{f"tova-head:{n}": (TOVA(n, per_head=True), lambda l, n=n: tova_head(n)) for n in (1, 6)},
    **{f"h2o:{n}": (H2O(n), lambda l, n=n: h2o(n, n // 2)) for n in (1, 2, 7)},
    "h2o:6:0": (H2O(6, recent=0), lambda l: h2o(6, 0)),
    "h2o:5:5": (H2O(5, recent=5), lambda l: window(5)),
    **{f"h2o-layer:{n}": (H2O(n, per_head=False), lambda l, n=n: h2o(n, n // 2, True)) for n in (1, 7)},
    "tova per layer": (TOVA((3, 7)), lambda l: tova((3, 7)[l])),
    "h2o per layer": (H2O([2, 6]), lambda l: h2o((2, 6)[l], (1, 3)[l])),
    "window per layer": (Window((0, 4)), lambda l: window((0, 4)[l])),
    "one each": (["h2o-layer:4:1", "tova-head:5"], lambda l: (h2o(4, 1, True), tova_head(5))[l]),
}
SHAPES = {"alone": (4, 4), "grouped": (4, 2), "six by three": (6, 3), "shared": (4, 1)}


@pytest.mark.parametrize("heads", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("operator", "rule"), CASES.values(), ids=CASES)
def test_operator_equals_its_rule_and_attends_to_the_retained_rows(operator, rule, heads):
    cell = tiny_cell(seed=sum(heads), n_heads=heads[0], n_kv_heads=heads[1])
    text, lengths = random_tokens(3, 3, 16), torch.tensor([16, 9, 13])
    state, logits, history = cell.initial_state(3, operator), [], []
    for t in range(16):
        read, state = cell.step(text[:, t], state, active=t < lengths)
        logits.append(read)
        history.append(retained_positions(state))
    for b, length in enumerate(lengths.tolist()):
        own = torch.stack(logits, 1)[b, :length]
        masked, _ = dense_decoder(cell, text[b, :length], lambda l, b=b: lambda t, seen: history[t][l][b])  # noqa: B023
        assert_close(own, masked)
        ruled, after = dense_decoder(cell, text[b, :length], rule)
        assert [[history[t][l][b] for t in range(length)] for l in range(2)] == after
        assert_close(own, ruled)


@pytest.mark.parametrize(("operator", "rule"), [CASES["full"], CASES["tova:6"]], ids=["full", "tova:6"])
def test_dynamic_rope_rotates_by_the_length_so_far(operator, rule):
    cell, text = tiny_cell(rope=ROPES["dynamic"]), random_tokens(3, 1, 16)
    logits, state = step_loop(cell, text, cell.initial_state(1, operator))
    ruled, after = dense_decoder(cell, text[0], rule)
    assert_close(logits[0], ruled)
    assert [row[0] for row in retained_positions(state)] == [history[-1] for history in after]
    assert (ruled - dense_decoder(tiny_cell(), text[0], rule)[0])[6:].abs().max() > 1e-3  # the scaling was at work


def test_rules_of_different_operators_differ():
    cell, text = tiny_cell(), random_tokens(3, 1, 16)[0]
    several = [window(6), sinks(6, 4), tova(6), tova_head(6), h2o(6, 3), h2o(6, 3, True), h2o(6, 0)]
    histories = [dense_decoder(cell, text, lambda l, rule=rule: rule)[1][0] for rule in several]
    assert all(a != b for i, a in enumerate(histories) for b in histories[:i])


FIGURE_2 = {  # arXiv:2401.06104, fig. 2, k = 5: the weights at t, and what leaves
    5: ({0: 0.2, 1: 0.05, 2: 0.1, 3: 0.1, 4: 0.2, 5: 0.35}, 1),
    6: ({0: 0.15, 2: 0.15, 3: 0.1, 4: 0.05, 5: 0.25, 6: 0.3}, 4),
    7: ({0: 0.15, 2: 0.15, 3: 0.1, 5: 0.15, 6: 0.2, 7: 0.25}, 3),
    8: ({0: 0.2, 2: 0.15, 5: 0.15, 6: 0.1, 7: 0.15, 8: 0.25}, 6),
}


@pytest.mark.parametrize("tilt", [0.0, 0.04])
def test_tova_on_the_example_of_the_paper(tilt):
    """One decision by the mean of both heads. ``tilt`` moves weight between the heads, so each head alone would differ."""
    H = rows_at([3, 0, 4, 1, 2], TOVA(5), K=2)
    for t, (weights, gone) in FIGURE_2.items():
        before = H.positions[0, 0].tolist()
        row = [weights[p] for p in (*before, t)]
        lean = [tilt if p == gone else -tilt if p == 0 else 0.0 for p in (*before, t)]
        one, other = ([[w + sign * d for w, d in zip(row, lean, strict=True)]] for sign in (1, -1))
        H = reduced(H, [one, other])
        assert H.positions[0, 0].tolist() == H.positions[0, 1].tolist()
        assert {*before, t} - set(H.positions[0, 0].tolist()) == {gone}
        assert H.keys[..., 0].equal(H.positions.double())
        assert H.values.equal(-H.keys)


@pytest.mark.parametrize("heads", [(4, 2), (6, 3), (5, 1), (7, 7)])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_tova_with_zero_queries_equals_window(heads, size):
    cell = tiny_cell(n_heads=heads[0], n_kv_heads=heads[1])
    for layer in cell.layers:
        layer.q.weight.zero_()
    text = random_tokens(1, 2, 20)
    states = [cell.initial_state(2, r) for r in (TOVA(size), TOVA(size, per_head=True), Window(size))]
    for token in text.T:
        outs = [cell.step(token, state) for state in states]
        states = [state for _, state in outs]
        assert retained_positions(states[0]) == retained_positions(states[1]) == retained_positions(states[2])
        assert_close(outs[0][0], outs[2][0], 1e-12)
        assert_close(outs[1][0], outs[2][0], 1e-12)


def test_sliding_window_of_w_equals_window_of_w_minus_one():
    W, text = 5, random_tokens(2, 1, 18)
    cell = tiny_cell(family="mistral", sliding_window=W)
    assert cell.default_reduction == Window(W - 1)
    published, _ = dense_decoder(cell, text[0], lambda l: lambda t, seen: [range(max(0, t + 1 - (W - 1)), t + 1) for _ in seen])
    own, state = step_loop(cell, text)
    assert_close(own[0], published)
    assert state[0].reduction == Window(W - 1)
    wider, _ = step_loop(cell, text, cell.initial_state(1, Window(W)))
    assert (wider[0] - published).abs().max() > 1e-3
    unbounded, _ = step_loop(cell, text, cell.initial_state(1, "full"))
    assert (unbounded[0] - published).abs().max() > 1e-3


def test_sliding_window_of_one_attends_to_the_current_token_only():
    cell = tiny_cell(sliding_window=1)
    text = random_tokens(2, 1, 6)
    own, state = step_loop(cell, text)
    assert [H.keys.shape[2] for H in state] == [0, 0]
    alone, _ = dense_decoder(cell, text[0], lambda l: lambda t, seen: [[] for _ in seen])
    assert_close(own[0], alone)
