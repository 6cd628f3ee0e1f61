"""Undo, branches and files restore a conversation; damaged files raise."""

import json

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from support.tiny_chat import LINES, reply, tiny_chat
from support.tiny_models import assert_same
from support.tiny_tokenizer import TEMPLATES

import msrnn


@pytest.mark.parametrize("template", ["ChatML", "Llama 2"])
def test_undo_restores_the_conversation(template):
    plain, chat = tiny_chat(TEMPLATES[template], 3), tiny_chat(TEMPLATES[template], 3)
    first = reply(plain, LINES[0])
    second = reply(plain, LINES[1])
    reply(chat, LINES[0])
    state, ids = chat.state, chat.ids
    assert reply(chat, LINES[2]) != second
    chat.undo()
    assert chat.messages[-1]["content"] == first
    if template == "ChatML":
        assert chat.state is state
    else:  # the template renders that reply differently, so the state before the reply is restored
        assert 0 < len(chat.ids) < len(ids)
    assert chat.ids == ids[: len(chat.ids)]
    assert reply(chat, LINES[1]) == second
    assert chat.ids == plain.ids
    assert_same(chat.state, plain.state)


def test_undo_past_the_oldest_checkpoint_reads_the_conversation_again():
    plain, chat = tiny_chat(), tiny_chat()
    reply(plain, "a")
    for line in ("a", *LINES, *LINES, *LINES):
        reply(chat, line)
    for _ in range(12):
        chat.undo()
    assert chat.messages == plain.messages
    assert reply(chat, "then") == reply(plain, "then")
    assert chat.ids == plain.ids
    for _ in range(2):
        chat.undo()
    assert chat.messages == ()
    with pytest.raises(msrnn.Error, match="no turn"):
        chat.undo()


def test_a_reply_belongs_to_the_branch_of_its_question():
    chat = tiny_chat()
    reply(chat, LINES[0])
    before = chat.messages
    chunks = chat.reply(LINES[1])
    printed = next(chunks)
    chat.fork("side")
    chunks.close()
    turn = ({"role": "user", "content": LINES[1]}, {"role": "assistant", "content": printed})
    assert {name: branch.messages for name, branch in chat.branches.items()} == {"main": (*before, *turn), "side": before}


def test_branches_are_independent():
    chat, plain = tiny_chat(seed=3), tiny_chat(seed=3)
    reply(chat, LINES[0])
    assert chat.fork() == "main-2"
    other = reply(chat, LINES[1])
    assert chat.fork("side") == "side"
    reply(chat, LINES[3])
    chat.switch("main")
    assert len(chat.messages) == 2
    reply(plain, LINES[0])
    assert reply(chat, LINES[2]) == reply(plain, LINES[2])
    assert_same(chat.state, plain.state)
    chat.switch("main-2")
    assert chat.messages[-1]["content"] == other
    with pytest.raises(msrnn.Error, match="exists already"):
        chat.fork("main")
    with pytest.raises(msrnn.Error, match="branch 'x' does not exist; expected one of main, main-2, side"):
        chat.switch("x")
    assert chat.name == "main-2"


@pytest.fixture
def saved(tmp_path):
    chat = tiny_chat(seed=3, system="the system")
    reply(chat, LINES[0])
    reply(chat, LINES[1])
    chat.save(tmp_path / "talk")
    return chat, tmp_path / "talk"


def test_a_loaded_chat_continues_as_the_saved_one(saved):
    chat, path = saved
    other = tiny_chat(seed=3)
    reply(other, "something else")
    assert other.load(path) == "talk"
    assert (other.messages, other.ids) == (chat.messages, chat.ids)
    assert reply(other, LINES[2]) == reply(chat, LINES[2])
    assert_same(other.state, chat.state)
    assert len(other.branches["main"].messages) == 2
    assert other.load(path) == "talk-2"
    other.undo()
    other.undo()
    assert other.messages == ({"role": "system", "content": "the system"},)


def test_load_state_reads_a_saved_chat(saved):
    chat, path = saved
    assert_same(msrnn.load_state(path), chat.state)


def test_a_chat_with_8_bit_rows(tmp_path):
    chat = tiny_chat(kv_dtype=torch.int8)
    reply(chat, LINES[0])
    assert chat.state.dtype == torch.int8
    chat.save(tmp_path / "talk")
    expected = reply(chat, LINES[1])
    again = tiny_chat(kv_dtype="int8")
    again.load(tmp_path / "talk")
    assert reply(again, LINES[1]) == expected
    with pytest.raises(msrnn.Error, match=r"the state has tova:24 with int8 rows .*; expected tova:24 with float\d+ rows"):
        tiny_chat().load(tmp_path / "talk")


def test_an_empty_chat_can_be_saved(tmp_path):
    tiny_chat().save(tmp_path / "empty")
    chat = tiny_chat()
    chat.load(tmp_path / "empty")
    assert reply(chat, "x") == reply(tiny_chat(), "x")


def test_only_a_saved_chat_is_overwritten(saved, tmp_path):
    chat, path = saved
    chat.save(path)
    chat.state.save(tmp_path / "state")
    (tmp_path / "notes.txt").write_text("mine")
    for name, complaint in {"state": "is not a saved chat", "notes.txt": "safetensors", ".": "is a folder"}.items():
        with pytest.raises(msrnn.Error, match=complaint):
            chat.save(tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def edited(change):
    def damage(tensors, about):
        chat = json.loads(about["chat"])
        change(chat)
        about["chat"] = json.dumps(chat)

    return damage


def narrower(tensors, about):
    tensors.update({n: x[..., 1:].contiguous() for n, x in tensors.items() if n.endswith(("keys", "values"))})


def fewer_layers(tensors, about):
    about["operators"] = json.dumps(json.loads(about["operators"])[:1])
    for name in [n for n in tensors if n.startswith("layers.1.")]:
        del tensors[name]


DAMAGE = {
    "no chat": (lambda t, a: a.pop("chat"), "no chat"),
    "no JSON": (lambda t, a: a.update(chat="{"), "no chat"),
    "deep JSON": (lambda t, a: a.update(chat="[" * 100_000), "no chat"),
    "a list": (lambda t, a: a.update(chat="[]"), "no chat"),
    "no ids": (edited(lambda c: c.pop("ids")), "no chat"),
    "ids a number": (edited(lambda c: c.update(ids=3)), "no chat"),
    "ids of text": (edited(lambda c: c["ids"].__setitem__(0, "1")), "damaged"),
    "an id missing": (edited(lambda c: c["ids"].pop()), "damaged"),
    "a message missing": (edited(lambda c: c["messages"].pop()), "damaged"),
    "another role": (edited(lambda c: c["messages"][1].update(role="tool")), "damaged"),
    "content is not text": (edited(lambda c: c["messages"][1].update(content=3)), "no chat"),
    "content is not Unicode": (edited(lambda c: c["messages"][1].update(content="\udc00")), "no chat"),
    "messages a number": (edited(lambda c: c.update(messages=3)), "no chat"),
    "another operator": (lambda t, a: a.update(operators=a["operators"].replace("24", "25")), "the state has tova:25"),
    "another model": (lambda t, a: a.update(cell=a["cell"].replace("0.", "1.")), "another model"),
    "narrower": (narrower, "rows 2 × 5"),
    "fewer layers": (fewer_layers, "no further layer"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_raises_and_the_chat_is_unchanged(damage, complaint, saved):
    chat, path = saved
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    damage(tensors, about)
    save_file(tensors, path, about)
    before = (chat.name, dict(chat.branches))
    with pytest.raises(msrnn.Error, match=complaint) as error:
        chat.load(path)
    assert "\n" not in str(error.value)
    assert (chat.name, chat.branches) == before
    assert reply(chat, LINES[2])
