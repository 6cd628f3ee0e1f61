"""Answers are those of decoding every prompt alone, by steps; the common beginning is read once."""

import pytest
import torch
from support.tiny_models import step_loop
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.cell.cell import Cell
from msrnn.eval.answers import write_answers

TOKENIZER = tiny_tokenizer()
PROMPTS = ["the sea was not", "the sea was small, and the wind rose", "the sea", "the sea was not so small"]


def by_steps(cell, prompt, reduction, limit):
    """Return the ids of a greedy answer, up to and including eos."""
    logits, state = step_loop(cell, torch.tensor([TOKENIZER.encode(prompt).ids]), cell.initial_state(1, reduction))
    token, written = logits[0, -1].argmax(), []
    while len(written) < limit:
        written.append(int(token))
        if written[-1] in cell.config.eos_token_ids:
            break
        logits, state = cell.step(token[None], state)
        token = logits[0].argmax()
    return written


@pytest.mark.parametrize("reduction", ["full", "tova:6"])
def test_answers_equal_those_of_single_prompts(reduction):
    cell = chat_cell(eos_token_ids=(40, 41, 42, 43, 44, 45))
    limits, ended = [20, 30, 5, 30], set()
    for answer, prompt, limit in zip(write_answers(cell, TOKENIZER, PROMPTS, reduction, limits), PROMPTS, limits, strict=True):
        right = by_steps(cell, prompt, reduction, limit)
        assert answer == (TOKENIZER.decode(right), len(right), right[-1] in cell.config.eos_token_ids)
        ended.add(answer.ended)
    assert ended == {True, False}


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it():
    cell = chat_cell()
    (whole,) = write_answers(cell, TOKENIZER, PROMPTS[:1], "full", [30])
    assert (whole.tokens, whole.ended) == (30, False)
    stop = whole.text[7:9]
    (answer,) = write_answers(cell, TOKENIZER, PROMPTS[:1], "full", [30], stop)
    assert (answer.text, answer.ended) == (whole.text[: whole.text.index(stop)], True)
    assert answer.tokens < 30


def test_the_common_beginning_is_read_once(monkeypatch):
    cell, read = chat_cell(), []
    forward = Cell.forward
    monkeypatch.setattr(
        Cell, "forward", lambda self, tokens, *args, **more: read.append(tokens.shape) or forward(self, tokens, *args, **more)
    )
    write_answers(cell, TOKENIZER, PROMPTS, "tova:6", [1] * 4)
    ids = [TOKENIZER.encode(prompt).ids for prompt in PROMPTS]
    common = len(TOKENIZER.encode("the sea").ids) - 1  # a token is left for the shortest prompt
    assert read == [(1, common), (4, max(map(len, ids)) - common)]
