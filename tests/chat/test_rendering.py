"""The ids before a reply, and the ids that end it."""

import pytest
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer

import msrnn
from msrnn.chat.rendering import Renderer

QUESTION = [{"role": "user", "content": "hello"}]


def test_the_prompt_is_the_rendered_text_without_a_second_bos():
    tokenizer = tiny_tokenizer()
    ids = Renderer(chat_cell(TEMPLATES["ChatML"]), tokenizer).prompt_ids(QUESTION)
    text = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert ids == tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def test_a_reply_ends_with_an_eos_id_or_the_special_token_after_an_answer():
    """<s> is an eos id of the config here, and the template writes <|im_end|> after an answer."""
    tokenizer = tiny_tokenizer()
    bos, end = (tokenizer.token_to_id(token) for token in ("<s>", "<|im_end|>"))
    cell = chat_cell(TEMPLATES["ChatML"], eos_token_ids=(bos,))
    assert set(Renderer(cell, tokenizer).end_ids) == {bos, end}
    plain = chat_cell("{% for message in messages %}{{ message.content }} {% endfor %}", eos_token_ids=(bos,))
    assert Renderer(plain, tokenizer).end_ids == (bos,)


@pytest.mark.parametrize(("template", "message"), [(None, "no chat template"), ("hello", "drops messages")])
def test_a_template_without_the_messages_is_refused(template, message):
    with pytest.raises(msrnn.Error, match=message):
        Renderer(chat_cell(template), tiny_tokenizer())
