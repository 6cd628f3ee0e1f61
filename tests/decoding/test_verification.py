"""The acceptance of drafts, on logits written by hand, and what the speculation controller is given."""

import itertools

import torch
from support.tiny_models import tiny_cell

import msrnn
from msrnn.decoding import speculative, verification
from msrnn.decoding.drafters import NgramDrafter
from msrnn.decoding.endings import Endings
from msrnn.decoding.ngram_pool import Draft
from msrnn.decoding.prompt import Start
from msrnn.decoding.sampling import Sampler
from msrnn.decoding.speculation_controller import SpeculationController
from msrnn.decoding.verification import _argmax_after, _from_pool, _verify, draft_and_verify


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


class Recorder(SpeculationController):
    """A controller that reads drafts in every second forward pass and records its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def should_speculate(self, match_lengths):
        self.lengths = match_lengths
        return len(self.calls) % 2 == 1

    def record_plain(self, seconds):
        self.calls.append(("plain", seconds))

    def record_speculative(self, seconds, match_lengths, gains):
        assert match_lengths == self.lengths
        self.calls.append(("speculative", seconds, list(match_lengths), list(gains)))


def test_the_controller_gets_the_time_the_match_lengths_and_the_accepted_drafts(monkeypatch):
    """Both lists have one entry per unfinished sequence, in the same order."""
    cell, recorder, clock, proposed = tiny_cell(), Recorder(), itertools.count(), []

    def propose(drafter, token, room, propose=NgramDrafter.propose):
        drafts = propose(drafter, token, room)
        proposed.append((drafter.text[0], drafts[0].match_length if drafts else None))
        return drafts

    monkeypatch.setattr(NgramDrafter, "propose", propose)
    monkeypatch.setattr(speculative, "SpeculationController", lambda: recorder)
    monkeypatch.setattr(verification.time, "perf_counter", lambda: 2.0 ** next(clock))  # differences tell which two were taken
    text = torch.tensor([[0, 2, 3, 0, 2, 3, 0], [1, 5, 1, 5, 1, 5, 1], [2, 8, 7, 6, 5, 4, 3]])  # begin with their row numbers
    free = msrnn.generate(cell, text, max_new_tokens=24).tokens
    pool = msrnn.NgramPool()
    pool.add([*text[0].tolist(), *free[0].tolist()])  # the drafts for the first sequence are correct
    kinds = set()
    settings = {"max_new_tokens": 24, "ngram": 5, "pool": pool, "eos_token_id": int(free[2, 3])}
    for n, accepted in enumerate(msrnn.stream_lookahead(cell, text, **settings)):
        kind, seconds, *account = recorder.calls[n]
        unfinished = {b: len(tokens) for b, tokens in enumerate(accepted.tokens) if tokens}
        assert seconds == 2.0 ** (2 * n + 1) - 2.0 ** (2 * n)
        if kind == "speculative":
            assert account == [[length for _, length in proposed], [unfinished[b] - 1 for b, _ in proposed]]
        else:
            assert set(unfinished.values()) == {1}
        assert {b for b, _ in proposed} == set(unfinished)
        kinds.add((kind, len(unfinished), len(set(unfinished.values())) > 1))
        proposed.clear()
    assert len(recorder.calls) == n + 1
    assert {("speculative", 3, True), ("plain", 3, False)} <= kinds
    assert any(kind == "speculative" and count < 3 for kind, count, _ in kinds)


def test_the_longest_match_of_several_drafts_is_reported():
    recorder, pool = Recorder(), msrnn.NgramPool()
    cell, text = tiny_cell(), torch.tensor([[1, 2, 3]])
    token = int(cell(text, last_only=True)[0].argmax())
    pool.add([token, 40, 41])
    pool.add([2, 3, token, 42, 43])
    drafter = NgramDrafter([1, 2, 3], 0, 2, 4, pool)
    start = Start(*cell(text, last_only=True), [[1, 2, 3]], ended=False)
    recorder.calls.append(("plain", 0.0))
    passes = draft_and_verify(cell, start, [drafter], greedy, Endings(cell), 3, recorder, False)
    next(passes)
    assert recorder.calls[1][2] == [3]
