"""Stop strings: the row ends with the token that completes the string, for every decoding function."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import examples
from support.decoding_methods import METHODS, STREAMS, assert_equal, decode
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

import msrnn

CELL = tiny_cell()
TOKENIZER = tiny_tokenizer()
STOP_CELL = chat_cell(eos_token_ids=())


def first_stop(ids, stop, start):
    """Return how many ids after ``start`` are kept: the text up to there is the first with a stop string that ends there."""
    before = len(TOKENIZER.decode(ids[:start], skip_special_tokens=False))
    for n in range(start + 1, len(ids) + 1):
        text = TOKENIZER.decode(ids[:n], skip_special_tokens=False)
        if any(at >= 0 for s in stop if (at := text.find(s, max(0, before - len(s) + 1))) >= 0):
            return n - start
    return len(ids) - start


@given(st.data())
@examples(40)
def test_stop_strings_end_rows(data):
    """The tokens kept, the state and the logits are those of the step loop up to the token that completes a stop string."""
    cell, B, T, N = STOP_CELL, 2, data.draw(st.integers(1, 6)), 12
    text = random_tokens(data.draw(st.integers(0, 99)), B, T, vocab=cell.config.vocab_size)
    start, free = cell.initial_state(B, "tova:5"), None
    free = msrnn.generate(cell, text, start, max_new_tokens=N).tokens
    strings = []
    for b in range(B):  # a piece of the text, which may begin in the prompt
        whole = TOKENIZER.decode([*text[b].tolist(), *free[b].tolist()], skip_special_tokens=False)
        end = data.draw(st.integers(1, len(whole)))
        strings.append(whole[max(0, end - data.draw(st.integers(1, 5))) : end])
    stop = strings if data.draw(st.booleans()) else strings[0]
    counts = [
        first_stop([*text[b].tolist(), *free[b].tolist()], [stop] if isinstance(stop, str) else stop, T) for b in range(B)
    ]
    settings = {"stop": stop, "tokenizer": TOKENIZER}
    method = data.draw(st.sampled_from([*METHODS, *STREAMS]))
    ours = decode(method, cell, text, start, max_new_tokens=N, **settings)
    assert ours.tokens.shape[1] == max(counts)
    assert (ours.state.clock - T).tolist() == counts
    for b, count in enumerate(counts):
        assert ours.tokens[b, :count].equal(free[b, :count])
        assert set(ours.tokens[b, count:].tolist()) <= {int(free[b, count - 1])}
        logits, alone = cell(torch.cat((text[b], free[b, :count]))[None], start.select([b]), last_only=True)
        assert_same(ours.state.select([b]), alone, 1e-8)
        assert_close(ours.logits[b], logits[0], 1e-8)
    n = data.draw(st.integers(1, N - 1))
    half = decode(method, cell, text, start, max_new_tokens=n, **settings)
    rest = decode(
        data.draw(st.sampled_from([*METHODS])), cell, None, half.state, logits=half.logits, max_new_tokens=N - n, **settings
    )
    assert_equal(rest._replace(tokens=torch.cat((half.tokens, rest.tokens), 1)), ours)


def test_the_tokenizer_of_the_model_is_the_default():
    text = random_tokens(3, 1, 4, vocab=100)
    free = msrnn.generate(STOP_CELL, text, max_new_tokens=8).tokens[0].tolist()
    stop = TOKENIZER.decode(free[2:4], skip_special_tokens=False)
    ours = msrnn.generate(STOP_CELL, text, max_new_tokens=8, stop=stop)
    assert ours.tokens.equal(msrnn.generate(STOP_CELL, text, max_new_tokens=8, stop=[stop], tokenizer=TOKENIZER).tokens)
    assert ours.tokens.shape[1] == first_stop([*text[0].tolist(), *free], [stop], 4)
    with pytest.raises(msrnn.Error, match=r"tokenizer is None; expected the tokenizers\.Tokenizer of the model for stop"):
        msrnn.generate(CELL, random_tokens(1, 1, 3), max_new_tokens=2, stop="x")


@pytest.mark.parametrize("stop", ["", ["a", ""], 3, b"a", [1], {"a"}])
def test_invalid_stop_strings_are_refused(stop):
    for function in (msrnn.generate, msrnn.stream, msrnn.jacobi, msrnn.stream_lookahead):
        with pytest.raises(msrnn.Error, match=r"stop is .*; expected a string or a list of strings"):
            function(STOP_CELL, random_tokens(1, 1, 3), max_new_tokens=2, stop=stop)
    with pytest.raises(msrnn.Error, match="tokenizer is 'x'"):
        msrnn.generate(STOP_CELL, random_tokens(1, 1, 3), max_new_tokens=2, stop="a", tokenizer="x")
