"""``msrnn.compact``: the rows of the highest scores, in every head, and steps that go on."""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell, tiny_decoder

import msrnn

TEXT = random_tokens(3, 2, 20)


def by_value(layer, H):
    """A score that ignores attention: the norm of the value, as numbers."""
    return H.dequantised(torch.float64)[1].norm(dim=-1) + layer


@pytest.mark.parametrize("setting", [{}, {"dtype": torch.int8}, {"places": "inside"}], ids=str)
@pytest.mark.parametrize("reduction", ["full", "h2o:9"])
def test_the_highest_scores_are_retained_and_steps_go_on(reduction, setting):
    cell, lengths = tiny_cell(), torch.tensor([20, 5])
    _, state = cell(TEXT, cell.initial_state(2, reduction, **setting), lengths=lengths)
    before = state.clone()
    after = msrnn.compact(state, 6, by_value)
    assert_same(state, before)
    assert after.clock.equal(state.clock)
    for H, G in zip(state, after, strict=True):
        for b, k in ((b, k) for b in range(2) for k in range(2)):
            score = by_value(0, H)[b, k]
            there = [i for i, p in enumerate(H.positions[b, k].tolist()) if p >= 0]
            kept = sorted(there, key=lambda i: -float(score[i]))[:6]
            held = [i for i, p in enumerate(G.positions[b, k].tolist()) if p >= 0]
            assert sorted(H.positions[b, k, kept].tolist()) == G.positions[b, k, held].tolist()
            by_position = sorted(kept, key=lambda i: int(H.positions[b, k, i]))
            for name in G.rows:
                assert G.rows[name][b, k, held].equal(H.rows[name][b, k, by_position])
    assert after.nbytes < state.nbytes
    logits, end = step_loop(cell, TEXT, after)
    many, other = cell(TEXT, after)
    assert_close(many, logits, 1e-8)
    assert_same(other, end, 1e-8)


def test_ties_nan_learned_rows_and_one_decision_per_layer():
    cell = tiny_decoder(persistent=2)
    _, state = cell(TEXT, cell.initial_state(2))
    after = msrnn.compact(state, 3, lambda layer, H: torch.zeros(2, 1, H.positions.shape[2]))
    assert all(H.positions[b, k].tolist() == [-2, -2, 17, 18, 19] for H in after for b in range(2) for k in range(2))
    odd = msrnn.compact(state, 3, lambda layer, H: torch.where(H.positions % 2 == 0, torch.nan, 0.0))
    assert all(H.positions[0, 0].tolist() == [-2, -2, 15, 17, 19] for H in odd)
    assert_same(msrnn.compact(state, 20, lambda layer, H: H.positions), state)


def test_the_cut_of_prefill_is_a_compaction():
    """Of the unbounded state, by the score of the operator for the last query."""
    cell, size = tiny_cell(), 5
    _, state = cell(TEXT[:, :19], cell.initial_state(2))
    _, trace = cell.scan(TEXT[:, 19:], state)
    grown = trace.at(1)

    def score(layer, H):
        q = trace[layer].queries[:, :, 0].unflatten(1, (2, 2))  # (B, K, G, D)
        return (q @ H.keys.mT * 6**-0.5).softmax(-1).mean((1, 2))[:, None]

    _, expected = msrnn.prefill(cell, TEXT, f"tova:{size}")
    for H, G in zip(msrnn.compact(grown, size, score), expected, strict=True):
        assert H.positions.equal(G.positions)
        assert_close(H.values, G.values)


@pytest.mark.parametrize(
    ("size", "score", "message"),
    [
        (0, by_value, "compact: size is 0"),
        (4, lambda layer, H: H.positions[..., 1:], r"the score of layer 0 is .*; expected \(2, 2 or 1, 20\)"),
        (4, lambda layer, H: None, "the score of layer 0 is NoneType None"),
        (
            4,
            lambda layer, H: H.positions.to("meta"),
            "the score of layer 0 is a torch.strided tensor on meta; expected a dense",
        ),
        (4, "values", "compact: score is str 'values'; expected a function of the index and H of a layer"),
    ],
)
def test_refusals(size, score, message):
    cell = tiny_cell()
    _, state = cell(TEXT)
    with pytest.raises(msrnn.Error, match=message):
        msrnn.compact(state, size, score)
    with pytest.raises(msrnn.Error, match="compact: state is NoneType None; expected a State"):
        msrnn.compact(None, 4, by_value)
