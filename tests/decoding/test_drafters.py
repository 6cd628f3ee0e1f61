"""Drafters without a model: what they propose after given predictions."""

from msrnn import NgramPool
from msrnn.decoding.drafters import JacobiDrafter, NgramDrafter
from msrnn.decoding.ngram_pool import Draft


def test_the_first_jacobi_block_repeats_the_token():
    assert JacobiDrafter(3).propose(7, room=9) == [Draft([7, 7, 7], 0)]


def test_predictions_behind_the_accepted_tokens_are_the_next_jacobi_block():
    drafter = JacobiDrafter(3)
    drafter.propose(7, room=9)
    drafter.update([], [[10, 11, 12, 13]])  # after 7, and after each drafted token; 10 is the next token
    assert drafter.propose(10, room=9) == [Draft([11, 12, 13], 0)]
    drafter.update([11], [[11, 22, 23, 24]])  # 11 is accepted; 22 is the next token
    assert drafter.propose(22, room=9) == [Draft([23, 24, 24], 0)]


def test_a_jacobi_block_is_limited_to_the_room_left():
    drafter = JacobiDrafter(3)
    assert drafter.propose(7, room=2) == [Draft([7, 7], 0)]
    assert drafter.propose(7, room=0) == []
    assert JacobiDrafter(0).propose(7, room=9) == []


def test_trajectories_grow_by_the_predictions_and_enter_the_pool():
    drafter = NgramDrafter([5], window=1, length=3, max_drafts=1, pool=NgramPool())
    assert drafter.propose(5, room=9)[0] == Draft([5], 0)  # the start of the only trajectory
    drafter.update([], [[6]])
    assert drafter.propose(8, room=9)[0] == Draft([5, 6], 0)
    assert Draft([6], 1) in drafter.pool.lookup([5], 9, 1)


def test_equal_calls_start_equal_trajectories():
    one, other = (NgramDrafter([*range(100)], window=8, length=3, max_drafts=0, pool=NgramPool()) for _ in range(2))
    starts = [draft.tokens for draft in one.propose(7, room=9)]
    assert starts == [draft.tokens for draft in other.propose(7, room=9)]
    assert len({*map(tuple, starts)}) > 2


def test_the_accepted_tokens_extend_the_text():
    drafter = NgramDrafter([1, 2, 3], window=0, length=2, max_drafts=1, pool=NgramPool())
    drafter.propose(1, room=9)
    drafter.update([2], [])
    assert drafter.text == [1, 2, 3, 1, 2]
    assert drafter.propose(3, room=9) == [Draft([1, 2], 3)]


def test_no_trajectory_is_read_beyond_the_room_left():
    drafter = NgramDrafter([5, 5, 5], window=1, length=3, max_drafts=1, pool=NgramPool())
    drafter.propose(5, room=9)
    drafter.update([], [[6]])
    assert drafter.propose(5, room=1) == [Draft([5], 3)]  # only the pool's draft, shortened
