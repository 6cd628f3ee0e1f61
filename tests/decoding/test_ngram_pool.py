"""The pool gives what a naive search through its texts finds."""

import pytest
from cell.test_laws import laws
from hypothesis import given
from hypothesis import strategies as st

from msrnn import Error, Pool

TEXT = st.lists(st.integers(0, 3), max_size=14)


def naive(texts, own, context, length):
    """Every continuation of every place whose ``context`` tokens before it end ``own``, the newest place first."""
    beginning = own[len(own) - context :]
    for text in reversed(texts):
        for place in reversed(range(context, len(text) + 1)):
            if text[place - context : place] == beginning:
                guess = list(text[place : place + length])
                while text is own and guess and len(guess) < length:
                    guess.append((own + guess)[place + len(guess)])
                if guess:
                    yield guess


@given(st.lists(TEXT, max_size=3), TEXT.filter(bool), st.integers(1, 4), st.integers(0, 5), st.integers(0, 6))
@laws(300)
def test_the_longest_beginning_first_then_the_newest(others, own, context, count, length):
    pool, texts = Pool(context, most=1000), [*others, own]
    for text in texts:
        pool.add(text)
    wanted = []
    for some in range(min(context, len(own)), 0, -1):
        for guess in naive(texts, own, some, length):
            if len(wanted) < count and not any(known[: len(guess)] == guess for known, _ in wanted):
                wanted.append((guess, some))
    assert pool.after(own, count, length) == wanted


@given(TEXT, st.integers(1, 4))
@laws(50)
def test_a_text_that_grows_is_a_text(text, context):
    whole, grown, line = Pool(context), Pool(context), []
    whole.add(text)
    for token in text:
        line.append(token)
        grown.add(line, len(line) - 1)
    assert grown.after(text, 9, 4) == whole.after(list(text), 9, 4)
    assert grown.largest == max(text, default=-1)


def test_a_loop_goes_on_as_a_loop():
    pool, text = Pool(), [9, 1, 2, 1, 2]
    pool.add(text)
    assert pool.after(text, 1, 7) == [([1, 2, 1, 2, 1, 2, 1], 2)]
    assert pool.after([1, 2], 1, 7)[0].tokens == [1, 2]  # another text stops at this one's end


def test_only_the_newest_places_are_kept():
    pool = Pool(context=1, most=2)
    for follower in range(5):
        pool.add([7, follower])
    assert [guess.tokens for guess in pool.after([7], 9, 3)] == [[4], [3]]


@pytest.mark.parametrize("settings", [{"context": 0}, {"most": 0}, {"context": True}, {"most": 1.5}])
def test_refusals(settings):
    with pytest.raises(Error, match="Pool: "):
        Pool(**settings)
