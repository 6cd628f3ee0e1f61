"""Sampled tokens of Jacobi and lookahead decoding have the distribution of plain decoding."""

import pytest
import torch
from support.tiny_models import assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import jacobi


@pytest.mark.parametrize("settings", [{"window": 3, "ngram": 4, "guesses": 3}, {"guesses": "auto"}, {"block": 5}])
def test_one_sequence_is_sampled_as_in_plain_decoding(settings):
    """The generator returns the same numbers in the same order, and ends in the same state."""
    cell, text = tiny_cell(), random_tokens(1, 1, 5, vocab=4)
    for seed in range(8):
        ours, plain = (torch.Generator().manual_seed(seed) for _ in range(2))
        shape = {"max_new_tokens": 30, "do_sample": True, "temperature": 0.7, "top_k": 3, "eos_token_id": seed}
        drawn, end, _ = msrnn.generate(cell, text, cell.initial_state(1, "tova:5"), generator=plain, **shape)
        decode = jacobi if "block" in settings else msrnn.lookahead
        new, after, _, _ = decode(cell, text, cell.initial_state(1, "tova:5"), generator=ours, **settings, **shape)
        assert new.equal(drawn)
        assert_same(after, end, 1e-8)
        assert ours.get_state().equal(plain.get_state())


def test_sampled_tokens_have_the_distribution_of_plain_decoding():
    """Frequencies of all sequences of three tokens, with accepted and rejected drafts, against exact probabilities."""
    cell, B, V = tiny_cell(vocab_size=5), 4000, 5
    text = torch.tensor([[1, 2, 1, 2, 1]])
    shape = {"temperature": 1.5, "top_k": 4}
    exact = torch.ones(1, dtype=torch.float64)
    sequences = torch.zeros(1, 0, dtype=torch.int64)
    for _ in range(3):
        whole = torch.cat((text.expand(len(sequences), -1), sequences), dim=1)
        logits, _ = cell(whole, cell.initial_state(len(whole), "tova:4"), last_only=True)
        exact = (exact[:, None] * msrnn.decoding.sampling.sampling_probs(logits, **shape)).flatten()
        sequences = torch.cat((sequences.repeat_interleave(V, 0), torch.arange(V).repeat(len(sequences))[:, None]), dim=1)
    new, _, _, record = msrnn.lookahead(
        cell,
        text.expand(B, -1),
        cell.initial_state(B, "tova:4"),
        max_new_tokens=3,
        ngram=3,
        guesses=2,
        do_sample=True,
        generator=torch.Generator().manual_seed(0),
        **shape,
    )
    assert 0.05 < (record.accepted_from_pool[0] > 0).double().mean() < 0.95
    counts = torch.bincount(new @ torch.tensor([V * V, V, 1]), minlength=V**3).double()
    assert counts[exact == 0].sum() == 0
    common = exact * B >= 5
    observed = torch.cat((counts[common], counts[~common].sum()[None]))
    expected = B * torch.cat((exact[common], exact[~common].sum()[None]))
    square = float(((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    freedom = len(observed) - 1
    assert square < freedom + 4 * (2 * freedom) ** 0.5, f"chi² {square:.1f} at {freedom} degrees of freedom"
