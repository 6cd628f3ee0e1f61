"""A part of ``tests/support/decoding_agrees.py``: two of the twenty prompts, 16 tokens, real weights."""

import support.decoding_agrees
import torch
from support.tiny_models import random_tokens, tiny_cell

import converters
from msrnn.bench.prompts import PROMPTS


def test_the_twenty_prompts_contain_every_kind():
    assert len({prompt.name for prompt in PROMPTS}) == 20
    assert {prompt.kind for prompt in PROMPTS} == {"prose", "chat", "code", "list", "language", "quote"}


def test_speculative_decoding_equals_plain_decoding(smollm, gguf_path, figure):
    tokenizer, some = converters.tokenizer(gguf_path), ("stack", "rename")
    texts = {p.name: p.encode(smollm, tokenizer) for p in PROMPTS if p.name in some}
    found = list(support.decoding_agrees.compare(smollm, texts, "tova:64", 16, {"1 draft of 8": {"ngram": 9, "guesses": 1}}))
    near = sum(verdict.outcome.startswith("near-tie") for verdict in found)
    assert len(found) == 2
    assert not [verdict for verdict in found if verdict.outcome.startswith("WRONG")]
    figure(f"{2 - near} of 2 texts are equal with lookahead, {near} near-ties: SmolLM2-135M, float32, tova:64, 16 tokens")


def test_a_difference_without_a_near_tie_is_wrong():
    cell, text = tiny_cell(), random_tokens(1, 1, 9)[0].tolist()
    greedy, other = torch.tensor([3, 4, 5]), torch.tensor([3, 7, 5])
    assert support.decoding_agrees.judge(cell, text, "tova:4", greedy, other).startswith("WRONG: token 1")
    assert support.decoding_agrees.judge(cell, text, "tova:4", greedy, greedy).startswith("WRONG: other positions")
