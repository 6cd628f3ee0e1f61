"""Evicted tokens are struck out, as ANSI codes or between ``~~``."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msrnn.text.evicted_words import END, STRIKE, strike_out


@pytest.mark.parametrize(
    ("words", "evicted", "expected"),
    [
        (["The", " sea", " was", " calm"], [0, 1, 1, 0], "The ~~sea was~~ calm"),
        (["The", " sea", " was", " calm"], [1, 0, 0, 1], "~~The~~ sea was ~~calm~~"),
        (["un", "sink", "able"], [0, 1, 0], "un~~sink~~able"),
        (["a", "\n", "b"], [1, 1, 1], "~~a~~\n~~b~~"),
        (["a", "  ", "b"], [1, 0, 1], "~~a~~  ~~b~~"),
        (["a", " b"], [0, 0], "a b"),
        ([], [], ""),
    ],
)
def test_parts_of_evicted_tokens_are_struck_out(words, evicted, expected):
    text, spans, start = "".join(words), [], 0
    for word in words:
        spans.append((start, start := start + len(word)))
    gone = [bool(x) for x in evicted]
    assert strike_out(text, spans, gone, ansi=False) == expected
    assert strike_out(text, spans, gone, ansi=True).replace(STRIKE, "~~").replace(END, "~~") == expected
    trimmed = [(a + len(text[a:b]) - len(text[a:b].lstrip()) if text[a:b].strip() else a, b) for a, b in spans]
    if "  " not in words:  # the spans of some tokenizers leave the space before a word out
        assert strike_out(text, trimmed, gone, ansi=False) == expected


def test_special_tokens_and_characters_of_several_tokens():
    spans = [(0, 0), (0, 1), (0, 1), (1, 3), (0, 0)]
    assert strike_out("🙂ab and more", spans, [True, True, False, True, True], ansi=False) == "🙂~~ab~~"
    assert strike_out("🙂ab and more", spans, [False, True, True, False, False], ansi=False) == "~~🙂~~ab"
    assert strike_out("skipped ab", [(8, 9), (9, 10)], [False, True], ansi=False) == "a~~b~~"


@given(st.lists(st.tuples(st.text("ab \n", min_size=1, max_size=3), st.booleans()), max_size=8))
@settings(deadline=None, derandomize=True)
def test_the_text_is_complete_and_retained_characters_are_not_struck(tokens):
    text, spans, start = "".join(word for word, _ in tokens), [], 0
    for word, _ in tokens:
        spans.append((start, start := start + len(word)))
    found = strike_out(text, spans, [gone for _, gone in tokens], ansi=True)
    assert found.replace(STRIKE, "").replace(END, "") == text
    struck, inside = [], False
    for piece in found.replace(STRIKE, "\0<").replace(END, "\0>").split("\0"):
        inside = piece[:1] == "<" if piece[:1] in ("<", ">") else inside
        struck += [inside] * len(piece.lstrip("<>"))
    expected = [gone for word, gone in tokens for _ in word]
    assert all(a == b for a, b, c in zip(struck, expected, text, strict=True) if not c.isspace())
