"""Chat: settings and messages that are refused, interrupts, and invalid bytes."""

import pytest
import torch
from support.tiny_chat import LINES, reply, tiny_chat
from support.tiny_models import tiny_cell
from support.tiny_tokenizer import TEMPLATES

import msrnn


def test_an_unknown_decoding_method_raises():
    with pytest.raises(msrnn.Error, match="decode is 'fast'; expected one of plain, jacobi, lookahead"):
        tiny_chat(decode="fast")
    with pytest.raises(msrnn.Error, match=r"decode is 'lookahed' \(did you mean 'lookahead'\?\); expected one of plain"):
        tiny_chat(decode="lookahed")


def test_an_interrupt_before_the_first_token_changes_nothing(monkeypatch):
    chat = tiny_chat()
    reply(chat, LINES[0])
    before = chat.branches["main"]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    for method in ("unroll", "step_layers"):  # while the question is read, and before the first token
        with monkeypatch.context() as patch:
            patch.setattr(type(chat.cell), method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                reply(chat, LINES[1])
        assert chat.branches == {"main": before}


def test_invalid_bytes_do_not_end_a_chat():
    """DecodeStream raises a bare Exception for an invalid sequence of byte tokens after a valid byte."""
    from tokenizers import Tokenizer, decoders, models

    vocab = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    cell = tiny_cell(vocab_size=len(vocab), bos_token_id=1)
    cell.extra_files = {"chat_template.jinja": TEMPLATES["Mistral"].encode()}
    generator = torch.Generator().manual_seed(0)
    settings = {"max_new_tokens": 200, "do_sample": True, "temperature": 9.0, "generator": generator}
    chat = msrnn.Chat(cell, tokenizer, reduction="window:8", **settings)
    for _ in range(4):
        reply(chat, "x")
    assert chat.last_reply.completion_tokens == 200
    assert "\N{REPLACEMENT CHARACTER}" in chat.messages[-1]["content"]


@pytest.mark.parametrize(
    ("template", "settings", "complaint"),
    [
        (None, {}, "has no chat template"),
        ("{% if %}", {}, "not valid Jinja"),
        ("no message", {}, "drops messages"),
        ("{{ messages[-1].content }}", {}, "drops messages"),
        (TEMPLATES["Mistral"], {"system": "x"}, "alternate"),
        (TEMPLATES["ChatML"], {"system": "\udc00"}, "expected text"),
        (TEMPLATES["ChatML"], {"temperature": 0.5}, "do_sample"),
        (TEMPLATES["ChatML"], {"max_new_tokens": -1}, "max_new_tokens"),
        (TEMPLATES["ChatML"], {"reduction": "tova"}, "tova:<size: int>"),
    ],
)
def test_invalid_settings_raise_in_the_constructor(template, settings, complaint):
    with pytest.raises(msrnn.Error, match=complaint):
        tiny_chat(template, **settings)


def test_an_invalid_message_raises_and_the_chat_is_unchanged():
    chat = tiny_chat()
    for text in ("\udcff", None, 3):
        with pytest.raises(msrnn.Error, match="expected text"):
            reply(chat, text)
    assert chat.messages == ()
    assert reply(chat, "")
    bare = tiny_chat("{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(msrnn.Error, match="produced no tokens"):
        reply(bare, "")
