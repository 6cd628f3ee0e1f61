"""Chat with stop strings: the reply ends before the string, and the state has read exactly the ids of the conversation."""

import pytest
import torch
from support.tiny_chat import LINES, reply, tiny_chat
from support.tiny_models import assert_same

import msrnn


@pytest.mark.parametrize("decode", ["plain", "jacobi", "lookahead"])
def test_a_reply_ends_before_a_stop_string(decode):
    free = reply(tiny_chat(seed=3), LINES[0])
    stop = free[4:6]
    chat = tiny_chat(seed=3, stop=[stop, "never"], decode=decode)
    chunks = list(chat.reply(LINES[0]))
    assert "".join(chunks) == free[: free.index(stop)] == chat.messages[-1]["content"]
    assert chat.last_reply.finished
    assert chat.tokenizer.decode(chat.ids).endswith(stop)
    for line in LINES[1:]:  # the next question is read after the message without the stop string
        text = chat.template([*chat.messages, {"role": "user", "content": line}], add_generation_prompt=True)
        ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
        reply(chat, line)
        assert list(chat.ids[: len(ids)]) == ids
        assert_same(chat.state, chat.cell(torch.tensor([chat.ids]), chat.cell.initial_state(1, "tova:24"))[1], 1e-8)


def test_text_held_back_for_a_stop_string_is_returned_at_the_end():
    free = reply(tiny_chat(seed=3), LINES[0])
    chunks = list(tiny_chat(seed=3, stop=free[-2:] + "?").reply(LINES[0]))
    assert "".join(chunks) == free
    assert chunks[-1].n_tokens == 0


def test_invalid_stop_strings_raise():
    with pytest.raises(msrnn.Error, match="stop is 3; expected a string"):
        tiny_chat(stop=3)
