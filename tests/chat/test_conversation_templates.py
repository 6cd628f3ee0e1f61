"""The chat template of a conversation: selection by name, variables and tools."""

import json

import pytest
from support.tiny_chat import reply, tiny_chat
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn

SHOWING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}{{ mode }}"
    "{% for t in tools or [] %}<{{ t.name }}>{% endfor %}"
)


def test_template_variables_and_tools_are_read():
    settings = {"template_variables": {"mode": "brief"}, "tools": [{"name": "weather"}]}
    chat = tiny_chat(SHOWING, **settings, reduction="full")
    reply(chat, "hello")
    assert chat.tokenizer.decode(chat.ids, skip_special_tokens=False).startswith("user: hello<|im_end|>brief<weather>")


def test_a_template_is_selected_by_name():
    cell = chat_cell(None)
    listed = [{"name": name, "template": f"{name}{SHOWING}"} for name in ("default", "tool_use", "rag")]
    cell.extra_files = {**cell.extra_files, "tokenizer_config.json": json.dumps({"chat_template": listed}).encode()}
    for settings, name in (({}, "default"), ({"tools": []}, "tool_use"), ({"tools": [], "chat_template": "rag"}, "rag")):
        chat = msrnn.Chat(cell, tiny_tokenizer(), reduction="full", max_new_tokens=1, **settings)
        reply(chat, "hello")
        assert chat.tokenizer.decode(chat.ids).startswith(name)
    with pytest.raises(msrnn.Error, match="the model has no chat template 'other'; expected one of default, tool_use, rag"):
        msrnn.Chat(cell, tiny_tokenizer(), chat_template="other")


def test_an_unknown_setting_is_refused():
    with pytest.raises(msrnn.Error, match=r"Chat has no setting 'enable_thinking'; .* go into template_variables"):
        tiny_chat(enable_thinking=False)
