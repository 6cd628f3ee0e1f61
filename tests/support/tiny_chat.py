"""A chat with a tiny random cell."""

from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer

import msrnn

LINES = ("hello the other", "what on earth is it?", "the end", "one more")


def tiny_chat(template=TEMPLATES["ChatML"], seed=1, **settings):
    settings = {"reduction": "tova:24", "max_new_tokens": 20, **settings}
    return msrnn.Chat(chat_cell(template, seed), tiny_tokenizer(), **settings)


def reply(chat, text):
    return "".join(chat.reply(text))
