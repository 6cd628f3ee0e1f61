"""A chat: its state has read the ids of the conversation and no others, and is a value."""

import json

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from support.tiny_models import assert_same, tiny_cell
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

import converters
import msrnn
from msrnn.chat.history import KEPT

SYSTEM = {"Mistral": None}  # its template knows none
REWRITES = (
    *("Llama 2", "the system text moves", "reasoning is removed"),
    "Llama 3",  # because of the tokenizer here: two newlines are one token at the end of a text, and two before a letter
)
LINES = ("hello the other", "what on earth is it?", "the end", "one more")


def tiny_chat(template=TEMPLATES["ChatML"], seed=1, **settings):
    settings = {"reduction": "tova:24", "max_new_tokens": 20, **settings}
    return msrnn.Chat(chat_cell(template, seed), tiny_tokenizer(), **settings)


def said(chat, text):
    return "".join(chat.say(text))


@pytest.mark.parametrize("reduction", ["full", "tova:16"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_state_has_read_what_transformers_would_encode(name, reduction):
    """Every answer is what one cold read of the whole conversation gives, ids, rows and all."""
    reference = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), bos_token="<s>", eos_token="<|im_end|>")
    again = []
    for seed in (0, 4):  # 0 spells as the tokenizer does, more often than 4, which ends an answer
        chat = tiny_chat(TEMPLATES[name], seed, reduction=reduction, system=SYSTEM.get(name, "the system"))
        for line in LINES:
            messages = [*chat.messages, {"role": "user", "content": line}]
            expected = reference.apply_chat_template(
                messages, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
            )
            before, answer = list(chat.ids), said(chat, line)
            assert chat.messages == (*messages, {"role": "assistant", "content": answer})
            start = chat.cell.initial_state(1, reduction)
            cold, state = msrnn.generate(chat.cell, torch.tensor([expected]), start, max_new_tokens=20, eos_token_id=2)
            assert list(chat.ids) == expected + cold[0].tolist()
            assert_same(chat.state, state, 1e-9)
            assert len(expected) == len(before) - chat.last.again + chat.last.read
            assert (chat.last.again == 0) == (expected[: len(before)] == before)
            again.append(chat.last.again)
    assert sum(again) if name in REWRITES else again.count(0) > 2  # the first turns, and others


def test_only_what_is_new_is_read():
    chat = tiny_chat(seed=0)
    for line in LINES:
        before = len(chat.ids)
        said(chat, line)
        assert chat.last.again == 0
        assert chat.last.read == len(chat.ids) - before - chat.last.written
        assert chat.state.clock.tolist() == [len(chat.ids)]
    assert chat.last.read < 30 < len(chat.ids) - 100
    for _ in range(3):
        said(chat, "more")
    for _ in range(6):
        chat.undo()
    said(chat, LINES[3])
    assert (chat.last.read < 30, chat.last.again) == (True, 0)  # each of the last turns has a state of its own


def test_h_never_grows():
    chat = tiny_chat(reduction="tova:24")
    held = []
    for line in LINES * 3:
        said(chat, line)
        held.append(chat.state.nbytes)
    assert len(set(held)) == 1
    places = [p for branch in chat.branches.values() for p in branch.trail]
    assert len(places) <= 2 + KEPT + 1


@pytest.mark.parametrize("template", ["ChatML", "Llama 2"])
def test_undo_is_as_if_it_had_not_been_said(template):
    plain, chat = tiny_chat(TEMPLATES[template], 3), tiny_chat(TEMPLATES[template], 3)
    first = said(plain, LINES[0])
    second = said(plain, LINES[1])
    said(chat, LINES[0])
    state, ids = chat.state, chat.ids
    assert said(chat, LINES[2]) != second
    chat.undo()
    assert chat.messages[-1]["content"] == first
    if template == "ChatML":
        assert chat.state is state
    else:  # the template wrote that answer otherwise: what stays is the state before it
        assert 0 < len(chat.ids) < len(ids)
    assert chat.ids == ids[: len(chat.ids)]
    assert said(chat, LINES[1]) == second
    assert chat.ids == plain.ids
    assert_same(chat.state, plain.state)


def test_undo_further_than_states_are_kept():
    plain, chat = tiny_chat(), tiny_chat()
    said(plain, "a")
    for line in ("a", *LINES, *LINES, *LINES):
        said(chat, line)
    for _ in range(12):
        chat.undo()
    assert chat.messages == plain.messages
    assert said(chat, "then") == said(plain, "then")
    assert chat.ids == plain.ids
    for _ in range(2):
        chat.undo()
    assert chat.messages == ()
    with pytest.raises(msrnn.Error, match="no turn"):
        chat.undo()


def test_branches_do_not_meet():
    chat, plain = tiny_chat(seed=3), tiny_chat(seed=3)
    said(chat, LINES[0])
    assert chat.fork() == "main-2"
    there = said(chat, LINES[1])
    assert chat.fork("side") == "side"
    said(chat, LINES[3])
    chat.switch("main")
    assert len(chat.messages) == 2
    said(plain, LINES[0])
    assert said(chat, LINES[2]) == said(plain, LINES[2])
    assert_same(chat.state, plain.state)
    chat.switch("main-2")
    assert chat.messages[-1]["content"] == there
    with pytest.raises(msrnn.Error, match="exists already"):
        chat.fork("main")
    with pytest.raises(msrnn.Error, match="no branch is called 'x'; there are main, main-2, side"):
        chat.switch("x")
    assert chat.name == "main-2"


@pytest.mark.parametrize("template", ["ChatML", "Llama 2"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_an_answer_stopped_stays_as_far_as_it_was_said(count, template):
    chat = tiny_chat(TEMPLATES[template], 3, reduction="full")
    pieces = chat.say(LINES[0])
    heard = "".join(next(pieces) for _ in range(count))
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": heard}
    assert not chat.last.end
    assert chat.state.clock.tolist() == [len(chat.ids)]
    text = chat.template([*chat.messages, {"role": "user", "content": LINES[1]}], ask=True)
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    said(chat, LINES[1])
    assert list(chat.ids[: len(ids)]) == ids
    assert_same(chat.state, chat.cell(torch.tensor([chat.ids]), chat.cell.initial_state(1, "full"))[1], 1e-9)


@pytest.mark.parametrize("decode", ["jacobi", "lookahead"])
def test_another_way_to_decode_says_the_same(decode):
    """Word for word, turn by turn, to the mark at the end; the states are the same, and older turns can be taken up again."""
    chat, plain = tiny_chat(seed=4, decode=decode, max_new_tokens=60), tiny_chat(seed=4, max_new_tokens=60)
    for line in LINES:
        pieces = list(chat.say(line))
        assert "".join(pieces) == said(plain, line)
        assert_same(chat.state, plain.state, 1e-8)
        assert (chat.ids, chat.last.written, chat.last.end) == (plain.ids, plain.last.written, plain.last.end)
        assert max(piece.tokens for piece in pieces) <= chat.last.written
        assert chat.last.passes <= chat.last.written == plain.last.passes
    for one in (chat, plain):
        one.undo()
        one.undo()
    assert said(chat, LINES[0]) == said(plain, LINES[0])
    answer = chat.say(LINES[1])
    heard = next(answer)
    answer.close()
    assert chat.messages[-1]["content"] == heard
    assert chat.state.clock.tolist() == [len(chat.ids)]


def test_there_are_three_ways_to_decode():
    with pytest.raises(msrnn.Error, match="decode is 'fast'; expected one of plain, jacobi, lookahead"):
        tiny_chat(decode="fast")


def test_stopped_before_it_began_nothing_was_said(monkeypatch):
    chat = tiny_chat()
    said(chat, LINES[0])
    before = chat.branches["main"]

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    for place in ("fold", "transition"):  # while the question is read; before the first token
        with monkeypatch.context() as patch:
            patch.setattr(type(chat.cell), place, interrupted)
            with pytest.raises(KeyboardInterrupt):
                said(chat, LINES[1])
        assert chat.branches == {"main": before}


def test_marks_are_not_heard():
    chat = tiny_chat(seed=6)
    answer = said(chat, LINES[0])
    written = list(chat.ids[-chat.last.written :])
    assert {0, 4} < set(written)  # <|endoftext|> and </s>, which do not end an answer here
    assert answer == chat.tokenizer.decode(written, skip_special_tokens=True)


def test_the_mark_behind_an_answer_ends_it():
    known = tiny_chat(seed=4)
    unknown = msrnn.Chat(chat_cell(seed=4, eos_token_ids=()), tiny_tokenizer(), reduction="tova:24", max_new_tokens=30)
    known.max_new_tokens = 30
    assert said(known, LINES[0]) == said(unknown, LINES[0])
    assert known.last == unknown.last
    assert known.last.end
    assert known.ids[-1] == unknown.ids[-1] == 2


def test_drawing():
    answers = {
        said(tiny_chat(do_sample=True, temperature=2.0, generator=torch.Generator().manual_seed(n)), LINES[0])
        for n in (1, 1, 2)
    }
    assert len(answers) == 2


def test_bytes_that_make_no_text_do_not_end_a_chat():
    """DecodeStream raises a bare Exception where byte tokens spell an invalid run after a valid byte."""
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
        said(chat, "x")
    assert chat.last.written == 200
    assert "\N{REPLACEMENT CHARACTER}" in chat.messages[-1]["content"]


# Files.


@pytest.fixture
def saved(tmp_path):
    chat = tiny_chat(seed=3, system="the system")
    said(chat, LINES[0])
    said(chat, LINES[1])
    chat.save(tmp_path / "talk")
    return chat, tmp_path / "talk"


def test_a_saved_chat_goes_on_as_if_nothing_had_been(saved):
    chat, path = saved
    other = tiny_chat(seed=3)
    said(other, "something else")
    assert other.load(path) == "talk"
    assert (other.messages, other.ids) == (chat.messages, chat.ids)
    assert said(other, LINES[2]) == said(chat, LINES[2])
    assert_same(other.state, chat.state)
    assert len(other.branches["main"].messages) == 2
    assert other.load(path) == "talk-2"
    other.undo()
    other.undo()
    assert other.messages == ({"role": "system", "content": "the system"},)


def test_a_saved_chat_is_a_saved_state(saved):
    chat, path = saved
    assert_same(msrnn.load_state(path), chat.state)


def test_an_empty_chat_is_saved_too(tmp_path):
    tiny_chat().save(tmp_path / "empty")
    chat = tiny_chat()
    chat.load(tmp_path / "empty")
    assert said(chat, "x") == said(tiny_chat(), "x")


def test_nothing_but_a_saved_chat_is_written_over(saved, tmp_path):
    chat, path = saved
    chat.save(path)
    chat.state.save(tmp_path / "state")
    (tmp_path / "notes.txt").write_text("mine")
    for name, complaint in {"state": "is no saved chat", "notes.txt": "safetensors", ".": "is a folder"}.items():
        with pytest.raises(msrnn.Error, match=complaint):
            chat.save(tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def edited(change):
    def damage(tensors, about):
        words = json.loads(about["chat"])
        change(words)
        about["chat"] = json.dumps(words)

    return damage


def narrower(tensors, about):
    tensors.update({n: x[..., 1:].contiguous() for n, x in tensors.items() if n.endswith(("keys", "values"))})


def fewer_layers(tensors, about):
    about["operators"] = json.dumps(json.loads(about["operators"])[:1])
    for name in [n for n in tensors if n.startswith("layers.1.")]:
        del tensors[name]


DAMAGE = {
    "no words": (lambda t, a: a.pop("chat"), "no chat"),
    "no JSON": (lambda t, a: a.update(chat="{"), "no chat"),
    "deep JSON": (lambda t, a: a.update(chat="[" * 100_000), "no chat"),
    "a list": (lambda t, a: a.update(chat="[]"), "no chat"),
    "no ids": (edited(lambda w: w.pop("ids")), "no chat"),
    "ids a number": (edited(lambda w: w.update(ids=3)), "no chat"),
    "ids of text": (edited(lambda w: w["ids"].__setitem__(0, "1")), "damaged"),
    "an id missing": (edited(lambda w: w["ids"].pop()), "damaged"),
    "a message missing": (edited(lambda w: w["messages"].pop()), "damaged"),
    "another role": (edited(lambda w: w["messages"][1].update(role="tool")), "damaged"),
    "content no text": (edited(lambda w: w["messages"][1].update(content=3)), "no chat"),
    "content no Unicode": (edited(lambda w: w["messages"][1].update(content="\udc00")), "no chat"),
    "messages a number": (edited(lambda w: w.update(messages=3)), "no chat"),
    "another operator": (lambda t, a: a.update(operators=a["operators"].replace("24", "25")), "under tova:25"),
    "another model": (lambda t, a: a.update(cell=a["cell"].replace("0.", "1.")), "another model"),
    "narrower": (narrower, "rows 2 × 5"),
    "fewer layers": (fewer_layers, "no more layers"),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_and_the_chat_goes_on(damage, complaint, saved):
    chat, path = saved
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        about = file.metadata()
    damage(tensors, about)
    save_file(tensors, path, about)
    before = (chat.name, dict(chat.branches))
    with pytest.raises(msrnn.Error, match=complaint) as refused:
        chat.load(path)
    assert "\n" not in str(refused.value)
    assert (chat.name, chat.branches) == before
    assert said(chat, LINES[2])


# What is refused at the start.


@pytest.mark.parametrize(
    ("template", "settings", "complaint"),
    [
        (None, {}, "has no chat template"),
        ("{% if %}", {}, "cannot be read"),
        ("nothing of it", {}, "leaves out"),
        ("{{ messages[-1].content }}", {}, "leaves out"),
        (TEMPLATES["Mistral"], {"system": "x"}, "alternate"),
        (TEMPLATES["ChatML"], {"system": "\udc00"}, "expected text"),
        (TEMPLATES["ChatML"], {"temperature": 0.5}, "do_sample"),
        (TEMPLATES["ChatML"], {"max_new_tokens": -1}, "max_new_tokens"),
        (TEMPLATES["ChatML"], {"reduction": "tova"}, "tova:<size>"),
    ],
)
def test_refused_before_a_word_is_said(template, settings, complaint):
    with pytest.raises(msrnn.Error, match=complaint):
        tiny_chat(template, **settings)


def test_no_text_is_refused_and_the_chat_goes_on():
    chat = tiny_chat()
    for text in ("\udcff", None, 3):
        with pytest.raises(msrnn.Error, match="expected text"):
            said(chat, text)
    assert chat.messages == ()
    assert said(chat, "")
    bare = tiny_chat("{% for message in messages %}{{ message.content }}{% endfor %}")
    with pytest.raises(msrnn.Error, match="becomes no token"):
        said(bare, "")


# The real model.


def test_two_turns_are_transformers_greedy_answers(smollm, gguf_path, hf_folder, figure):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(hf_folder), AutoModelForCausalLM.from_pretrained(hf_folder)
    chat = msrnn.Chat(smollm, converters.tokenizer(gguf_path), reduction="full", max_new_tokens=24)
    messages = []
    for line in ("What is the capital of France?", "Name three rivers there, and say where they end."):
        messages.append({"role": "user", "content": line})
        new = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            ids = model.generate(new, attention_mask=torch.ones_like(new), do_sample=False, max_new_tokens=24)[0].tolist()
        answer = said(chat, line)
        assert list(chat.ids) == ids
        assert answer == tokenizer.decode(ids[new.shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        assert chat.last.again == 0
    figure(f"{len(ids)} ids of a chat of two turns are transformers': SmolLM2-135M, float32, unbounded")
