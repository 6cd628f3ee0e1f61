"""One prompt under several operators: tokens of ``generate``, positions of the step loop, bytes."""

import io
import itertools

import pytest
import torch
from support.tiny_models import tiny_cell
from support.tiny_tokenizer import chat_cell, sentencepiece_tokenizer, tiny_tokenizer

import msrnn
from msrnn.diagnostics.comparison import continue_prompt
from msrnn.diagnostics.retention import retained_fraction

CELL, TOKENIZER = chat_cell(), tiny_tokenizer()
PROMPT = torch.randint(0, CELL.config.vocab_size, (9,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("reduction", ["full", "tova:4", "window:5"])
def test_continuation_is_that_of_generate_and_positions_those_of_the_step_loop(reduction):
    out, eos = io.StringIO(), CELL.config.eos_token_ids
    result = continue_prompt(CELL, TOKENIZER, PROMPT, reduction, 7, out)
    tokens, state = torch.tensor([PROMPT]), CELL.initial_state(1, reduction)
    new, end, _ = msrnn.generate(CELL, tokens, state, max_new_tokens=7, eos_token_id=eos)
    assert result.new == new[0].tolist()
    assert result.state.nbytes == end.nbytes
    total = len(PROMPT) + len(result.new)
    assert result.retained.shape == (total, total)
    for t, token in enumerate([*PROMPT, *result.new]):
        _, state = CELL.step(torch.tensor([token]), state)
        assert torch.equal(result.retained[t], retained_fraction(state, total)[0].mean(0))
    assert out.getvalue() == TOKENIZER.decode(result.new)
    assert result.tokens_per_second > 0


def test_the_space_before_the_first_new_word_is_written():
    """The decoder of LLaMA 2 removes a space at the start of a text."""
    cell, tokenizer, written = tiny_cell(vocab_size=11), sentencepiece_tokenizer(), []
    for token in range(4, 11):  # of whole words
        out = io.StringIO()
        new = continue_prompt(cell, tokenizer, [token], "full", 3, out).new
        written.append(out.getvalue())
        assert tokenizer.decode([token]) + written[-1] == tokenizer.decode([token, *new])
    assert sum(text.startswith(" ") for text in written) > 2


def test_speed_counts_the_generated_tokens_and_their_time(monkeypatch):
    """The clock advances by a second at every call, so each token takes one second."""
    clock = itertools.count()
    monkeypatch.setattr("msrnn.diagnostics.comparison.time.perf_counter", lambda: float(next(clock)))
    assert continue_prompt(CELL, TOKENIZER, PROMPT, "full", 7, io.StringIO()).tokens_per_second == 1


def test_number_of_new_tokens_is_at_least_1():
    with pytest.raises(msrnn.Error, match="max_new_tokens is 0; expected an int of at least 1"):
        continue_prompt(CELL, TOKENIZER, PROMPT, "full", 0)
