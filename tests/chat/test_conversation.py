"""Chat: the state has read exactly the ids of the conversation, for every template and decoding method."""

import pytest
import torch
from support.tiny_chat import LINES, reply, tiny_chat
from support.tiny_models import assert_same
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

import converters
import msrnn
from msrnn.chat.history import CHECKPOINTED_TURNS

SYSTEM = {"Mistral": None}  # the template has no system message
RENDERED_DIFFERENTLY = (
    *("Llama 2", "the system text moves", "reasoning is removed"),
    "Llama 3",  # two newlines are one token at the end of a text, and two tokens before a letter
)


@pytest.mark.parametrize("reduction", ["full", "tova:16"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_state_has_read_the_ids_of_transformers(name, reduction):
    """Ids, rows and replies equal those after reading the whole conversation from its start."""
    reference = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), bos_token="<s>", eos_token="<|im_end|>")
    reread = []
    for seed in (0, 4):  # seed 0 generates the tokens of the tokenizer more often; seed 4 ends its replies
        chat = tiny_chat(TEMPLATES[name], seed, reduction=reduction, system=SYSTEM.get(name, "the system"))
        for line in LINES:
            messages = [*chat.messages, {"role": "user", "content": line}]
            expected = reference.apply_chat_template(
                messages, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
            )
            before, answer = list(chat.ids), reply(chat, line)
            assert chat.messages == (*messages, {"role": "assistant", "content": answer})
            start = chat.cell.initial_state(1, reduction)
            cold, state, _ = msrnn.generate(chat.cell, torch.tensor([expected]), start, max_new_tokens=20, eos_token_id=2)
            assert list(chat.ids) == expected + cold[0].tolist()
            assert_same(chat.state, state, 1e-9)
            assert len(expected) == len(before) - chat.last_reply.reread_tokens + chat.last_reply.prompt_tokens
            assert (chat.last_reply.reread_tokens == 0) == (expected[: len(before)] == before)
            reread.append(chat.last_reply.reread_tokens)
    assert sum(reread) if name in RENDERED_DIFFERENTLY else reread.count(0) > 2  # most turns, at least the first ones


def test_only_new_tokens_are_read():
    chat = tiny_chat(seed=0)
    for line in LINES:
        before = len(chat.ids)
        reply(chat, line)
        assert chat.last_reply.reread_tokens == 0
        assert chat.last_reply.prompt_tokens == len(chat.ids) - before - chat.last_reply.completion_tokens
        assert chat.state.clock.tolist() == [len(chat.ids)]
    assert chat.last_reply.prompt_tokens < 30 < len(chat.ids) - 100
    for _ in range(3):
        reply(chat, "more")
    for _ in range(6):
        chat.undo()
    reply(chat, LINES[3])
    assert chat.last_reply.prompt_tokens < 30
    assert chat.last_reply.reread_tokens == 0  # each of the last turns has its own checkpoint


def test_the_kv_cache_does_not_grow():
    chat = tiny_chat(reduction="tova:24")
    nbytes = []
    for line in LINES * 3:
        reply(chat, line)
        nbytes.append(chat.state.nbytes)
    assert len(set(nbytes)) == 1
    checkpoints = [c for branch in chat.branches.values() for c in branch.checkpoints]
    assert len(checkpoints) <= 2 + CHECKPOINTED_TURNS + 1


@pytest.mark.parametrize("template", ["ChatML", "Llama 2"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_stopped_reply_is_kept_up_to_the_stop(count, template):
    chat = tiny_chat(TEMPLATES[template], 3, reduction="full")
    chunks = chat.reply(LINES[0])
    printed = "".join(next(chunks) for _ in range(count))
    chunks.close()
    assert chat.messages[-1] == {"role": "assistant", "content": printed}
    assert not chat.last_reply.finished
    assert chat.state.clock.tolist() == [len(chat.ids)]
    text = chat.template([*chat.messages, {"role": "user", "content": LINES[1]}], add_generation_prompt=True)
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    reply(chat, LINES[1])
    assert list(chat.ids[: len(ids)]) == ids
    assert_same(chat.state, chat.cell(torch.tensor([chat.ids]), chat.cell.initial_state(1, "full"))[1], 1e-9)


@pytest.mark.parametrize("decode", ["jacobi", "lookahead"])
def test_all_decoding_methods_give_the_same_replies(decode):
    """Texts, ids and states are equal after every turn, after undo and after a stopped reply."""
    chat, plain = tiny_chat(seed=4, decode=decode, max_new_tokens=60), tiny_chat(seed=4, max_new_tokens=60)
    for line in LINES:
        chunks = list(chat.reply(line))
        assert "".join(chunks) == reply(plain, line)
        assert_same(chat.state, plain.state, 1e-8)
        assert (chat.ids, chat.last_reply.completion_tokens, chat.last_reply.finished) == (
            plain.ids,
            plain.last_reply.completion_tokens,
            plain.last_reply.finished,
        )
        assert max(chunk.n_tokens for chunk in chunks) <= chat.last_reply.completion_tokens
        assert chat.last_reply.forward_passes <= chat.last_reply.completion_tokens == plain.last_reply.forward_passes
    for one in (chat, plain):
        one.undo()
        one.undo()
    assert reply(chat, LINES[0]) == reply(plain, LINES[0])
    chunks = chat.reply(LINES[1])
    printed = next(chunks)
    chunks.close()
    assert chat.messages[-1]["content"] == printed
    assert chat.state.clock.tolist() == [len(chat.ids)]


def test_lookahead_drafts_from_the_questions_too():
    chat = tiny_chat(seed=4, decode="lookahead")
    for line in LINES[:2]:
        before = len(chat.ids)
        reply(chat, line)
        first = before - chat.last_reply.reread_tokens
        question = chat.ids[first : first + chat.last_reply.prompt_tokens]
        for start in range(len(question) - 3):
            drafts = chat._pool.lookup(list(question[start : start + 3]), 32, 1)
            assert question[start + 3] in [draft.tokens[0] for draft in drafts if draft.match_length == 3]


def test_special_tokens_are_not_printed():
    chat = tiny_chat(seed=6)
    answer = reply(chat, LINES[0])
    written = list(chat.ids[-chat.last_reply.completion_tokens :])
    assert {0, 4} < set(written)  # <|endoftext|> and </s>, which do not end a reply here
    assert answer == chat.tokenizer.decode(written, skip_special_tokens=True)


def test_the_special_token_behind_an_answer_ends_the_reply():
    known = tiny_chat(seed=4)
    unknown = msrnn.Chat(chat_cell(seed=4, eos_token_ids=()), tiny_tokenizer(), reduction="tova:24", max_new_tokens=30)
    known.max_new_tokens = 30
    assert reply(known, LINES[0]) == reply(unknown, LINES[0])
    assert known.last_reply == unknown.last_reply
    assert known.last_reply.finished
    assert known.ids[-1] == unknown.ids[-1] == 2


def test_equal_seeds_repeat_a_sampled_reply():
    answers = {
        reply(tiny_chat(do_sample=True, temperature=2.0, generator=torch.Generator().manual_seed(n)), LINES[0])
        for n in (1, 1, 2)
    }
    assert len(answers) == 2


def test_two_turns_equal_the_greedy_replies_of_transformers(smollm, gguf_path, hf_folder, figure):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(hf_folder), AutoModelForCausalLM.from_pretrained(hf_folder)
    chat = msrnn.Chat(smollm, converters.tokenizer(gguf_path), reduction="full", max_new_tokens=24)
    messages = []
    for line in ("What is the capital of France?", "Name three rivers there, and say where they end."):
        messages.append({"role": "user", "content": line})
        new = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            ids = model.generate(new, attention_mask=torch.ones_like(new), do_sample=False, max_new_tokens=24)[0].tolist()
        answer = reply(chat, line)
        assert list(chat.ids) == ids
        assert answer == tokenizer.decode(ids[new.shape[1] :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})
        assert chat.last_reply.reread_tokens == 0
    figure(f"{len(ids)} ids of a chat of two turns equal those of transformers: SmolLM2-135M, float32, unbounded")
