"""Decoding out of order gives greedy's tokens and greedy's state, whatever is guessed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_laws import laws, settings_of
from tiny import assert_same, tiny_cell, tokens

import msrnn
from msrnn import Error, jacobi


@given(st.data())
@laws(40)
def test_jacobi_is_greedy(data):
    """Any block, operator, batch, ragged prompts, ends inside an accepted run."""
    cell, B, reduction = data.draw(settings_of())
    text = tokens(data.draw(st.integers(0, 99)), B, T := data.draw(st.integers(1, 9)))
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, T), min_size=B, max_size=B)))
    eos = data.draw(st.none() | st.lists(st.integers(0, 49), min_size=1, max_size=12))
    facts = {"max_new_tokens": data.draw(st.integers(0, 13)), "lengths": lengths, "eos_token_id": eos}
    state = cell.initial_state(B, reduction)
    greedy, end = msrnn.generate(cell, text, state, **facts)
    new, after, record = jacobi(cell, text, state, block=data.draw(st.integers(1, 9)), **facts)
    assert new.equal(greedy)
    assert_same(after, end, 1e-8)
    assert int(record.accepted.sum()) == int((end.clock - lengths).sum())


def test_every_pass_settles_a_token_and_a_loop_settles_many():
    """The model's own loops are guessed right from some point on; a block of 1 is greedy decoding."""
    cell, text = tiny_cell(seed=3), tokens(1, 1, 5)
    new, _, record = jacobi(cell, text, cell.initial_state(1, "tova:4"), max_new_tokens=60, block=12)
    assert (record.accepted >= 1).all()
    assert record.steps < 60
    assert record.tokens_per_step == pytest.approx(60 / record.steps)
    same, _, one = jacobi(cell, text, cell.initial_state(1, "tova:4"), max_new_tokens=60, block=1)
    assert one.accepted.eq(1).all()
    assert one.steps == 60
    assert same.equal(new)


def test_it_goes_on_where_it_ended():
    cell, text = tiny_cell(), tokens(1, 2, 5)
    first, state, _ = jacobi(cell, text, cell.initial_state(2, "h2o:4"), max_new_tokens=7, block=3)
    logits, _ = cell(text, cell.initial_state(2, "h2o:4"))
    assert first[:, 0].equal(logits[:, -1].argmax(-1))
    whole, end = msrnn.generate(cell, text, cell.initial_state(2, "h2o:4"), max_new_tokens=12)
    assert whole[:, :7].equal(first)
    more, after = msrnn.generate(cell, whole[:, 7:8], state, max_new_tokens=4)
    assert whole[:, 8:].equal(more)
    assert_same(after, end, 1e-8)


@pytest.mark.parametrize("block", [0, -1, 2.0, True, "3", None])
def test_a_block_is_a_number_of_tokens(block):
    with pytest.raises(Error, match="block is"):
        jacobi(tiny_cell(), tokens(1, 1, 3), max_new_tokens=3, block=block)


@pytest.mark.parametrize("reduction", ["full", "tova:48", "h2o:48", "sinks:48:4", "window:48"])
def test_on_the_real_weights(reduction, smollm, gguf_path, figure):
    """Float32: greedy's tokens and kept positions."""
    import converters

    prompt = converters.tokenizer(gguf_path).encode("def fibonacci(n):\n    if n < 2:\n        return n\n").ids
    text, state = torch.tensor([prompt]), smollm.initial_state(1, reduction)
    greedy, end = msrnn.generate(smollm, text, state, max_new_tokens=48)
    new, after, record = jacobi(smollm, text, state, max_new_tokens=48, block=8)
    figure(f"{record.tokens_per_step:.2f} tokens a pass by jacobi, block 8: SmolLM2-135M, {reduction}, 48 tokens of code")
    assert new.equal(greedy)
    for G, H in zip(after, end, strict=True):
        assert G.positions.sort().values.equal(H.positions.sort().values)
