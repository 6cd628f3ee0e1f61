"""The n-gram pool against a naive search through its texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import examples

from msrnn import Error, NgramPool

TEXT = st.lists(st.integers(0, 3), max_size=14)


def naive(texts, own, match_length, length):
    """Every continuation after the last ``match_length`` tokens of ``own``, the newest occurrence first."""
    suffix = own[len(own) - match_length :]
    for text in reversed(texts):
        for index in reversed(range(match_length, len(text) + 1)):
            if text[index - match_length : index] == suffix:
                draft = list(text[index : index + length])
                while text is own and draft and len(draft) < length:
                    draft.append((own + draft)[index + len(draft)])
                if draft:
                    yield draft


@given(st.lists(TEXT, max_size=3), TEXT.filter(bool), st.integers(1, 4), st.integers(0, 5), st.integers(0, 6))
@examples(300)
def test_longer_matches_come_first_then_newer_ones(others, own, longest, count, length):
    pool, texts = NgramPool(longest, max_entries=1000), [*others, own]
    for text in texts:
        pool.add(text)
    expected = []
    for match_length in range(min(longest, len(own)), 0, -1):
        for draft in naive(texts, own, match_length, length):
            if len(expected) < count and not any(other[: len(draft)] == draft for other, _ in expected):
                expected.append((draft, match_length))
    assert pool.lookup(own, count, length) == expected


@given(TEXT, st.integers(1, 4))
@examples(50)
def test_a_text_added_token_by_token_equals_the_whole_text(text, longest):
    whole, grown, prefix = NgramPool(longest), NgramPool(longest), []
    whole.add(text)
    for token in text:
        prefix.append(token)
        grown.add(prefix, len(prefix) - 1)
    assert grown.lookup(text, 9, 4) == whole.lookup(list(text), 9, 4)
    assert grown.max_token_id == max(text, default=-1)


def test_a_repeating_text_is_drafted_as_a_loop():
    pool, text = NgramPool(), [9, 1, 2, 1, 2]
    pool.add(text)
    assert pool.lookup(text, 1, 7) == [([1, 2, 1, 2, 1, 2, 1], 2)]
    assert pool.lookup([1, 2], 1, 7)[0].tokens == [1, 2]  # the draft for another text ends with the indexed text


def test_only_the_newest_occurrences_are_retained():
    pool = NgramPool(max_match_length=1, max_entries=2)
    for follower in range(5):
        pool.add([7, follower])
    assert [draft.tokens for draft in pool.lookup([7], 9, 3)] == [[4], [3]]


@pytest.mark.parametrize(
    "settings", [{"max_match_length": 0}, {"max_entries": 0}, {"max_match_length": True}, {"max_entries": 1.5}]
)
def test_invalid_limits_raise(settings):
    with pytest.raises(Error, match="NgramPool: "):
        NgramPool(**settings)
