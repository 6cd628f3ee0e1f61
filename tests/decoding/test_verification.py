"""The acceptance of drafts, on logits written by hand."""

import torch

from msrnn.decoding.ngram_pool import Draft
from msrnn.decoding.sampling import Sampler
from msrnn.decoding.verification import _argmax_after, _from_pool, _verify


def logits_of(rows):
    """Return ``(B', T, 10)`` logits; the most likely tokens are ``rows``."""
    T = max(map(len, rows))
    return torch.nn.functional.one_hot(torch.tensor([row + [0] * (T - len(row)) for row in rows]), 10).double()


greedy = Sampler()


def never(b, token):
    return False


def test_the_candidate_with_the_longest_correct_prefix_is_kept():
    candidates = [[1, 2, 9], [1, 2, 3], [1, 9, 3]]  # the model continues 1 by 2, 3, 4
    logits = logits_of([[2, 3, 0], [2, 3, 4], [2, 0, 0]])
    assert _verify(logits, candidates, [0, 0, 0], {0: 9}, greedy, never) == ([1], [3], {0: 4})


def test_a_rejected_draft_leaves_the_first_token_and_the_next_one():
    assert _verify(logits_of([[5, 6]]), [[1, 2]], [0], {0: 9}, greedy, never) == ([0], [1], {0: 5})


def test_acceptance_ends_at_an_eos_and_at_the_room_left():
    candidates, logits = [[1, 2, 3]], logits_of([[2, 3, 4]])
    assert _verify(logits, candidates, [0], {0: 9}, greedy, lambda b, token: token == 2) == ([0], [2], {})
    assert _verify(logits, candidates, [0], {0: 2}, greedy, never) == ([0], [2], {})


def test_a_finished_sequence_accepts_nothing():
    best, counts, chosen = _verify(logits_of([[0], [5]]), [[], [1]], [0, 1], {1: 9}, greedy, never)
    assert (best, counts, chosen) == ([0, 1], [0, 1], {1: 5})


def test_predictions_are_returned_only_for_drafts_not_from_a_pool():
    drafts = {0: [Draft([2, 3], 0), Draft([4], 2)]}
    logits = logits_of([[5, 6, 7], [8, 9]])
    assert _argmax_after(logits, [[1, 2, 3], [1, 4]], [0, 0], drafts) == {0: [[5, 6, 7]]}


def test_accepted_tokens_from_the_pool_are_counted():
    assert _from_pool([1, 2, 3], [Draft([2, 3, 4], 1)]) == 2
    assert _from_pool([1, 2, 3], [Draft([2, 3, 4], 0)]) == 0
    assert _from_pool([1, 2, 3], [Draft([2, 9], 1)]) == 0
