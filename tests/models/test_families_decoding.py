"""Tests of decoding, one-shot prefill and chat with cells with different kinds of layers."""

import pytest
import torch
from support import eviction_rules
from support.naive_families import naive_decoder
from support.tiny_families import MIXED, NEW, tiny_family
from support.tiny_models import assert_close, assert_same, random_tokens, retained_positions
from support.tiny_tokenizer import TEMPLATES, chat_cell, tiny_tokenizer

import msrnn

T = 14


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("spec", [None, "tova:4", "all-layers:h2o:4"])
def test_speculative_decoding_equals_plain_decoding(family, spec):
    cell, text, lengths = tiny_family(family), random_tokens(1, 2, 6), torch.tensor([6, 4])
    state = cell.initial_state(2, spec)
    greedy, end, logits = msrnn.generate(cell, text, state, max_new_tokens=16, lengths=lengths)
    settings = {"max_new_tokens": 16, "lengths": lengths}
    for decoded in (
        msrnn.jacobi(cell, text, state, block=5, **settings),
        msrnn.lookahead(cell, text, state, window=3, ngram=4, guesses=2, **settings),
        msrnn.lookahead(cell, text, state, guesses="auto", **settings),
    ):
        assert decoded.tokens.equal(greedy)
        assert_same(decoded.state, end, 1e-8)
        assert_close(decoded.logits, logits, 1e-8)


def prefill_rule(operator, size):
    """Return the rule that retains every row up to the last token, and then the ``size`` rows with the highest scores."""
    received = {}

    def decide(t, seen):
        for h, head in enumerate(seen):
            for p, weights in head.items():
                received[h, p] = received.get((h, p), 0.0) + eviction_rules.mean(weights)
        if t < T - 1:
            return [list(head) for head in seen]
        if operator == "tova":
            score = {p: eviction_rules.mean(w for head in seen for w in head[p]) for p in seen[0]}
            return [sorted(sorted(score, key=lambda p: (score[p], p))[-size:])] * len(seen)
        recent, retained = size // 2, []
        for h, head in enumerate(seen):
            score = {p: float("inf") if p > t - recent else received[h, p] for p in head}
            retained.append(sorted(sorted(score, key=lambda p: (score[p], p))[-size:]))
        return retained

    return decide


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("operator", ["tova", "h2o"])
@pytest.mark.parametrize("prefix", ["", "all-layers:"])
def test_prefill_equals_naive_loops(family, operator, prefix):
    """Layers that keep the window of the published model read the prompt within it, the others in full."""
    cell, text = tiny_family(family), random_tokens(2, 1, T)
    replaces_all = prefix or None not in cell.config.windows
    rules = [
        prefill_rule(operator, 6) if W is None or replaces_all else eviction_rules.window(W - 1) for W in cell.config.windows
    ]
    expected, after, _ = naive_decoder(cell, text[0].tolist(), rules)
    logits, state = msrnn.prefill(cell, text, f"{prefix}{operator}:6")
    assert_close(logits[0], expected[-1])
    assert [[[p for p in head if p >= 0] for head in layer[0]] for layer in retained_positions(state)] == after[-1]
    again, _ = cell.step(text[:, 0], state)
    assert again.isfinite().all()


@pytest.mark.parametrize("family", MIXED)
def test_prefill_of_the_published_model_is_the_step_loop(family):
    cell, text, lengths = tiny_family(family), random_tokens(3, 3, T), torch.tensor([T, 9, 0])
    expected, end = cell(text, lengths=lengths, last_only=True)
    logits, state = msrnn.prefill(cell, text, "full", lengths=lengths)
    assert_close(logits, expected)
    assert_same(state, end, 1e-9)


@pytest.mark.parametrize("family", ["gemma3", "smollm3", "granite_swa"])
@pytest.mark.parametrize("spec", ["tova:24", "all-layers:tova:24"])
def test_chat(family, spec):
    """The state has read exactly the ids of the conversation, also after undo."""
    tokenizer = tiny_tokenizer()
    cell = tiny_family(family, vocab_size=tokenizer.get_vocab_size(), eos_token_ids=(2,))
    cell.extra_files = chat_cell(TEMPLATES["ChatML"]).extra_files
    chat = msrnn.Chat(cell, tokenizer, reduction=spec, max_new_tokens=12)
    for line in ("hello the other", "what on earth is it?", "the end"):
        "".join(chat.reply(line))
    assert chat.state.clock.tolist() == [len(chat.ids)]
    assert_same(chat.state, cell(torch.tensor([chat.ids]), cell.initial_state(1, spec))[1], 1e-9)
    ids = list(chat.ids)
    "".join(chat.reply("one more"))
    chat.undo()
    assert list(chat.ids)[: len(ids)] == ids[: len(chat.ids)]
    assert_same(chat.state, cell(torch.tensor([chat.ids]), cell.initial_state(1, spec))[1], 1e-9)


def test_stopped_rows_keep_their_state():
    cell, text = tiny_family("gemma3"), random_tokens(4, 3, 6)
    tokens, _, _ = msrnn.generate(cell, text, cell.initial_state(3, "tova:4"), max_new_tokens=12)
    eos = int(tokens[1, 4])
    stopped, state, _ = msrnn.generate(cell, text, cell.initial_state(3, "tova:4"), max_new_tokens=12, eos_token_id=eos)
    for b in range(3):
        ends = (tokens[b] == eos).nonzero()
        n = int(ends[0]) + 1 if len(ends) else 12
        assert stopped[b, :n].equal(tokens[b, :n])
        assert state.clock[b] == 6 + n
