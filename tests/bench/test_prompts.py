"""Prompts as token ids, and the detection of loops."""

import pytest
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.bench.prompts import Prompt, ends_in_loop


def test_only_a_user_message_is_rendered_by_the_chat_template():
    cell, tokenizer = chat_cell(), tiny_tokenizer()
    direct = Prompt("prose", "name", "a few words", chat=False).encode(cell, tokenizer)
    assert direct == tokenizer.encode("a few words", add_special_tokens=False).ids
    rendered = Prompt("chat", "name", "a few words").encode(cell, tokenizer)
    assert len(rendered) > len(direct)


@pytest.mark.parametrize(
    ("tokens", "looped"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], False),
        ([9, 8, 7, 6, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2], True),
        ([5] * 8, True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8], False),  # one repetition is not a loop
        ([1, 2], False),
    ],
)
def test_loop_is_detected(tokens, looped):
    assert ends_in_loop(tokens) == looped
