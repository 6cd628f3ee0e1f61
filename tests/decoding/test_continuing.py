"""Decoding in two calls equals decoding in one: 10 tokens followed by 10 tokens are 20 tokens."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import cells, examples
from support.decoding_methods import METHODS, STREAMS, assert_equal, decode
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell
from support.tiny_tokenizer import chat_cell

import msrnn
from msrnn.decoding.generate import Generated

CELL = tiny_cell()


@given(st.data(), cells())
@examples(60)
def test_two_calls_equal_one(data, drawn):
    """For every operator, ragged prompts, rows that end in the first call, and every pair of methods."""
    cell, B, reduction = drawn
    text = random_tokens(data.draw(st.integers(0, 99)), B, T := data.draw(st.integers(1, 9)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B)))
    eos = data.draw(st.none() | st.lists(st.integers(0, 49), min_size=1, max_size=16))
    n, more = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    start = cell.initial_state(B, reduction)
    whole = msrnn.generate(cell, text, start, lengths=lengths, max_new_tokens=n + more, eos_token_id=eos)
    first = data.draw(st.sampled_from([*METHODS, *STREAMS]))
    second = data.draw(st.sampled_from([*METHODS]))
    half = decode(first, cell, text, start, lengths=lengths, max_new_tokens=n, eos_token_id=eos)
    before = half.state.clone()
    rest = decode(second, cell, None, half.state, logits=half.logits, max_new_tokens=more, eos_token_id=eos)
    assert_equal(rest._replace(tokens=torch.cat((half.tokens, rest.tokens), 1)), whole)
    assert_same(half.state, before)
    for b in range(B):  # the state has read the prompt and the new tokens, and the logits belong to it
        n_read = int(whole.state.clock[b] - lengths[b])
        own = torch.cat((text[b, : lengths[b]], whole.tokens[b, :n_read]))[None]
        expected, alone = cell(own, start.select([b]), last_only=True)
        assert_close(whole.logits[b], expected[0], 1e-8)
        assert_same(whole.state.select([b]), alone, 1e-8)


@pytest.mark.parametrize("first", [*METHODS, *STREAMS])
@pytest.mark.parametrize("second", METHODS)
def test_sampling_continues_with_the_same_draws(first, second):
    B = 3 if {first, second} <= {"generate", "stream"} else 1
    text, settings = random_tokens(1, B, 4), {"do_sample": True, "temperature": 1.5, "top_k": 20, "eos_token_id": [3, 4]}
    for seed in range(3):
        once, twice = (torch.Generator().manual_seed(seed) for _ in range(2))
        state = CELL.initial_state(B, "tova:5")
        whole = msrnn.generate(CELL, text, state, max_new_tokens=14, generator=once, **settings)
        half = decode(first, CELL, text, state, max_new_tokens=6, generator=twice, **settings)
        rest = decode(second, CELL, None, half.state, logits=half.logits, max_new_tokens=8, generator=twice, **settings)
        assert_equal(rest._replace(tokens=torch.cat((half.tokens, rest.tokens), 1)), whole)
        assert once.get_state().equal(twice.get_state())


def test_the_logits_of_a_step_and_of_a_call_replace_the_prompt():
    text, state = random_tokens(1, 2, 6), CELL.initial_state(2, "h2o:4")
    whole = msrnn.generate(CELL, text, state, max_new_tokens=5)
    logits, read = CELL(text, state)
    assert_equal(msrnn.generate(CELL, state=read, logits=logits[:, -1], max_new_tokens=5), whole)
    for token in text.T:
        logits, state = CELL.step(token, state)
    assert_equal(msrnn.generate(CELL, state=state, logits=logits, max_new_tokens=5), whole)
    nothing = msrnn.generate(CELL, state=state, logits=logits, max_new_tokens=0)
    assert nothing.tokens.shape == (2, 0)
    assert nothing.tokens.dtype == torch.int64
    assert_equal(msrnn.lookahead(CELL, state=nothing.state, logits=nothing.logits, max_new_tokens=5), whole)


def test_every_item_of_a_stream_continues():
    text, state = random_tokens(1, 2, 6), CELL.initial_state(2, "sinks:5:1")
    whole = msrnn.generate(CELL, text, state, max_new_tokens=8)
    for n, item in enumerate(msrnn.stream(CELL, text, state, max_new_tokens=8), 1):
        token, after = item
        assert token is item.token
        assert after is item.state
        rest = msrnn.generate(CELL, state=after, logits=item.logits, max_new_tokens=8 - n)
        assert rest.tokens.equal(whole.tokens[:, n:])


@pytest.mark.parametrize("method", [*METHODS, *STREAMS])
def test_a_prompt_that_ends_with_an_eos_is_continued(method):
    text, state = random_tokens(1, 2, 6), CELL.initial_state(2, "tova:5")
    free, eos = decode(method, CELL, text, state, max_new_tokens=3), text[:, -1].tolist()
    assert not torch.isin(free.tokens, torch.tensor(eos)).any()
    assert_equal(decode(method, CELL, text, state, max_new_tokens=3, eos_token_id=eos), free)


def test_a_row_that_has_ended_goes_on_without_its_eos_and_after_more_tokens():
    text, state = random_tokens(1, 2, 6), CELL.initial_state(2, "tova:5")
    free = msrnn.generate(CELL, text, state, max_new_tokens=12)
    eos = int(free.tokens[0, 3])
    half = msrnn.generate(CELL, text, state, max_new_tokens=5, eos_token_id=eos)
    kept = half.state.clock - 6
    assert kept[0] < 5
    on = msrnn.generate(CELL, state=half.state, logits=half.logits, max_new_tokens=2)
    for b in range(2):
        assert on.tokens[b].equal(free.tokens[b, kept[b] : kept[b] + 2])
    ended = msrnn.generate(CELL, state=half.state, logits=half.logits, max_new_tokens=3, eos_token_id=[eos])
    assert ended.tokens[0].tolist() == [eos] * 3
    assert ended.state.clock[0] == half.state.clock[0]
    picked = half.state.select([0])
    assert msrnn.generate(CELL, state=picked, logits=half.logits[:1], max_new_tokens=3, eos_token_id=eos).tokens.shape == (1, 0)
    assert msrnn.generate(CELL, text, half.state, max_new_tokens=1, eos_token_id=eos).state.clock[0] == half.state.clock[0] + 7


def test_another_process_continues_from_a_file(tmp_path):
    cell = chat_cell()
    text, state = random_tokens(1, 2, 6), cell.initial_state(2, "tova:5")
    settings = {"eos_token_id": 7, "stop": "zz", "do_sample": True}
    once, twice = (torch.Generator().manual_seed(5) for _ in range(2))
    whole = msrnn.generate(cell, text, state, max_new_tokens=16, generator=once, **settings)
    half = msrnn.lookahead(cell, text[:1], state.select([0]), max_new_tokens=6)
    half = msrnn.generate(cell, text, state, max_new_tokens=6, generator=twice, **settings)
    half.state.save(tmp_path / "half", logits=half.logits)
    torch.save(twice.get_state(), tmp_path / "generator")
    cell.save(tmp_path / "model")
    program = f"""
import torch, msrnn
cell = msrnn.load({str(tmp_path / "model")!r})
state, logits = msrnn.load_state({str(tmp_path / "half")!r}, logits=True)
generator = torch.Generator()
generator.set_state(torch.load({str(tmp_path / "generator")!r}))
rest = msrnn.generate(cell, state=state, logits=logits, max_new_tokens=10, generator=generator, **{settings!r})
rest.state.save({str(tmp_path / "rest")!r}, logits=rest.logits)
torch.save(rest.tokens, {str(tmp_path / "tokens")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    state, logits = msrnn.load_state(tmp_path / "rest", logits=True)
    tokens = torch.cat((half.tokens, torch.load(tmp_path / "tokens")), 1)
    assert_equal(Generated(tokens, state, logits), whole)


LOGITS, READ = CELL(random_tokens(1, 2, 6), last_only=True)
ALL_LOGITS, _ = CELL(random_tokens(1, 2, 6))
WRONG = {
    "tokens and logits": (
        {"tokens": random_tokens(1, 2, 3), "logits": LOGITS, "state": READ},
        "tokens and logits are both given",
    ),
    "neither": ({"state": READ}, "tokens and logits are both None; expected a prompt, or logits"),
    "nothing": ({}, "tokens and logits are both None"),
    "logits without a state": ({"logits": LOGITS}, "state is None; expected the state that the logits belong to"),
    "lengths": ({"logits": LOGITS, "state": READ, "lengths": torch.tensor([1, 1])}, "lengths are given with logits"),
    "one row": ({"logits": LOGITS[:1], "state": READ}, r"shape \(1, 50\); expected floating-point numbers of shape \(2, 50\)"),
    "(V,)": ({"logits": LOGITS[0], "state": READ}, r"shape \(50,\); expected .* of shape \(2, 50\)"),
    "(B, T, V)": ({"logits": ALL_LOGITS, "state": READ}, r"expected .* of shape \(2, 50\).*use logits\[:, -1\]"),
    "another vocabulary": ({"logits": LOGITS[:, :9], "state": READ}, r"shape \(2, 9\)"),
    "integers": ({"logits": LOGITS.long(), "state": READ}, "int64 of shape"),
    "a list": ({"logits": [[1.0]], "state": READ}, "list"),
    "no state": ({"logits": LOGITS, "state": 3}, "state is int"),
    "another model": ({"logits": LOGITS, "state": tiny_cell(seed=5).initial_state(2)}, "another model"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_pairs_are_refused(arguments, message):
    functions = [msrnn.generate, msrnn.stream, msrnn.jacobi, msrnn.stream_jacobi, msrnn.lookahead, msrnn.stream_lookahead]
    for function in functions:
        with pytest.raises(msrnn.Error, match=message) as error:
            function(CELL, max_new_tokens=2, **arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_a_text_that_has_ended_draws_no_random_numbers(method):
    """As in one call, which ends at the eos."""
    generator, settings = torch.Generator().manual_seed(1), {"do_sample": True, "temperature": 2.0}
    logits, state = CELL(random_tokens(1, 1, 4), CELL.initial_state(1, "tova:5"), last_only=True)
    first = msrnn.generate(CELL, state=state, logits=logits, max_new_tokens=1, generator=generator, **settings)
    eos = int(first.tokens)
    generator.manual_seed(1)
    half = msrnn.generate(CELL, state=state, logits=logits, max_new_tokens=5, generator=generator, eos_token_id=eos, **settings)
    assert half.tokens.tolist() == [[eos]]
    before = generator.get_state()
    rest = decode(
        method, CELL, None, half.state, logits=half.logits, max_new_tokens=5, generator=generator, eos_token_id=eos, **settings
    )
    assert rest.tokens.shape == (1, 0)
    assert_same(rest.state, half.state)
    assert generator.get_state().equal(before)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_made_in_inference_mode_continues_outside(method):
    text = random_tokens(1, 1, 6)
    whole = msrnn.generate(CELL, text, CELL.initial_state(1, "tova:4"), max_new_tokens=8)
    with torch.inference_mode():
        half = msrnn.generate(CELL, text, CELL.initial_state(1, "tova:4"), max_new_tokens=3)
    rest = decode(method, CELL, None, half.state, logits=half.logits, max_new_tokens=5)
    assert_equal(rest._replace(tokens=torch.cat((half.tokens, rest.tokens), 1)), whole)
    assert not rest.logits.is_inference()
