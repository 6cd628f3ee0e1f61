"""Jacobi and lookahead decoding against plain decoding: the same tokens and the same state for any drafts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import cells, examples
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

import msrnn
from msrnn import Error, jacobi
from msrnn.decoding.speculation_result import SpeculationStats


@st.composite
def calls(draw):
    """A cell, a batch of ragged prompts, a state after a short text, and eos ids that occur inside accepted drafts."""
    cell, B, reduction = draw(cells())
    text = random_tokens(draw(st.integers(0, 99)), B, T := draw(st.integers(1, 9)), vocab=draw(st.sampled_from([3, 50])))
    lengths = torch.tensor(draw(st.lists(st.integers(1, T), min_size=B, max_size=B)))
    eos = draw(st.none() | st.lists(st.integers(0, 49), min_size=1, max_size=12))
    state = cell(random_tokens(7, B, draw(st.integers(0, 3))), cell.initial_state(B, reduction))[1]
    return cell, text, state, {"max_new_tokens": draw(st.integers(0, 13)), "lengths": lengths, "eos_token_id": eos}


def assert_plain(call, decoded):
    """Check that the tokens, the state and their number are those of ``generate``."""
    cell, text, state, arguments = call
    (new, after, logits, record), (greedy, end, expected) = decoded, msrnn.generate(cell, text, state, **arguments)
    assert new.equal(greedy)
    assert_same(after, end, 1e-8)
    assert_close(logits, expected, 1e-8)
    assert record.accepted.sum(0).equal(end.clock - state.clock - arguments["lengths"])
    assert (record.tokens_read >= record.accepted).all()
    assert (record.accepted_from_pool <= (record.accepted - 1).clamp(min=0)).all()


@given(st.data(), calls())
@examples(30)
def test_jacobi_is_greedy(data, call):
    """After j forward passes at least j tokens are accepted."""
    cell, text, state, arguments = call
    decoded = jacobi(cell, text, state, block=data.draw(st.integers(1, 9)), **arguments)
    assert_plain(call, decoded)
    accepted = decoded.record.accepted
    unfinished = accepted[1:] > 0
    assert (accepted[:-1] >= unfinished.long()).all()


@given(st.data(), calls())
@examples(60)
def test_lookahead_is_greedy(data, call):
    cell, text, state, arguments = call
    pool = data.draw(st.sampled_from([None, msrnn.NgramPool(1, 1), msrnn.NgramPool(2)]))
    if pool is not None and data.draw(st.booleans()):
        end = msrnn.generate(cell, text, state, **arguments)[0]
        pool.add([0, *end[0].tolist(), *range(50), *range(50)])  # the tokens that will be generated, and many others
    settings = {
        "window": data.draw(st.integers(0, 9)),
        "ngram": data.draw(st.integers(2, 9)),
        "guesses": data.draw(st.sampled_from(["auto", 0, 1, 2, 5])),
    }
    assert_plain(call, msrnn.lookahead(cell, text, state, pool=pool, **settings, **arguments))


@pytest.mark.parametrize("reduction", ["full", "tova:4", "h2o:5", "sinks:4:2", "caote:4"])
def test_a_pool_with_the_answer_is_accepted_in_full(reduction):
    """The number of forward passes is the number of drafts that the answer contains."""
    cell, text = tiny_cell(), random_tokens(1, 2, 5)
    state = cell.initial_state(2, reduction)
    greedy, end, _ = msrnn.generate(cell, text, state, max_new_tokens=24)
    pool = msrnn.NgramPool()
    for row in torch.cat((text, greedy), dim=1).tolist():
        pool.add(row)
    new, after, _, record = msrnn.lookahead(cell, text, state, max_new_tokens=24, ngram=8, guesses=4, pool=pool)
    assert new.equal(greedy)
    assert_same(after, end, 1e-8)
    assert record.steps == 3
    assert record.hits == 6
    assert record.accepted_from_pool.eq(7).all()


@pytest.mark.parametrize(
    ("whole", "stream", "settings"),
    [
        (jacobi, msrnn.stream_jacobi, {"block": 5}),
        (msrnn.lookahead, msrnn.stream_lookahead, {"window": 4, "ngram": 4, "guesses": 2}),
    ],
)
def test_a_stream_yields_the_same_forward_passes_and_separate_states(whole, stream, settings):
    cell, text = tiny_cell(), random_tokens(1, 2, 5)
    state = cell.initial_state(2, "h2o:4")
    new, _, _, record = whole(cell, text, state, max_new_tokens=20, **settings)
    steps = list(stream(cell, text, state, max_new_tokens=20, **settings))
    assert [[len(x) for x in step.tokens] for step in steps] == record.accepted.tolist()
    assert [step.tokens_read for step in steps] == record.tokens_read.tolist()
    assert [step.accepted_from_pool for step in steps] == record.accepted_from_pool.tolist()
    for b in range(2):
        assert [x for step in steps for x in step.tokens[b]] == new[b].tolist()
        written = 0
        for step in steps:
            written += len(step.tokens[b])
            prefix = msrnn.generate(cell, text, state, max_new_tokens=written)[1]
            assert_same(step.state.select([b]), prefix.select([b]), 1e-8)


def test_trajectories_are_continuations_by_the_model():
    """Each forward pass appends the model's choice after the text, the newest token and the end of the trajectory."""
    cell, prompt = tiny_cell(), random_tokens(1, 1, 6)
    state, pool, added = cell.initial_state(1, "tova:5"), msrnn.NgramPool(), []
    pool.add = lambda text, start=0: added.append((list(text), start))
    written, grown = prompt[0].tolist(), 0
    for step in msrnn.stream_lookahead(cell, prompt, state, max_new_tokens=12, window=3, ngram=4, guesses=0, pool=pool):
        newest = [*written, step.tokens[0][0]]
        for trajectory in (text for text, start in added if text[:6] != prompt[0].tolist()):
            logits, _ = cell(torch.tensor([newest + trajectory[:-1][-3:]]), state, last_only=True)
            assert trajectory[-1] == logits.argmax()
            grown += 1
        written += step.tokens[0]
        added.clear()
    assert grown >= 3
    assert len(written) == 18


def test_every_jacobi_pass_accepts_a_token_and_a_repeating_text_gains_more():
    """A block of 1 is greedy decoding."""
    cell, text = tiny_cell(seed=3), random_tokens(1, 1, 5)
    new, _, _, record = jacobi(cell, text, cell.initial_state(1, "tova:4"), max_new_tokens=60, block=12)
    assert (record.accepted >= 1).all()
    assert record.steps < 60
    assert record.tokens_per_step == pytest.approx(60 / record.steps)
    same, _, _, one = jacobi(cell, text, cell.initial_state(1, "tova:4"), max_new_tokens=60, block=1)
    assert one.accepted.eq(1).all()
    assert one.steps == 60
    assert same.equal(new)


def test_a_finished_row_does_not_count_for_the_tokens_per_step():
    accepted, from_pool = torch.tensor([[2, 1], [3, 0], [1, 0]]), torch.tensor([[1, 0], [2, 0], [0, 0]])
    stats = SpeculationStats(accepted, accepted + 2, from_pool)
    assert (stats.steps, stats.tokens_per_step, stats.hits) == (3, 7 / 4, 2)


def test_decoding_continues_from_the_returned_state():
    cell, text = tiny_cell(), random_tokens(1, 2, 5)
    first, state, _, _ = jacobi(cell, text, cell.initial_state(2, "h2o:4"), max_new_tokens=7, block=3)
    logits, _ = cell(text, cell.initial_state(2, "h2o:4"))
    assert first[:, 0].equal(logits[:, -1].argmax(-1))
    whole, end, _ = msrnn.generate(cell, text, cell.initial_state(2, "h2o:4"), max_new_tokens=12)
    assert whole[:, :7].equal(first)
    more, after, _ = msrnn.generate(cell, whole[:, 7:8], state, max_new_tokens=4)
    assert whole[:, 8:].equal(more)
    assert_same(after, end, 1e-8)


@pytest.mark.parametrize("block", [0, -1, 2.0, True, "3", None])
def test_an_invalid_block_raises(block):
    with pytest.raises(Error, match="block is"):
        jacobi(tiny_cell(), random_tokens(1, 1, 3), max_new_tokens=3, block=block)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": -1}, "window is -1"),
        ({"window": 2.0}, "window is 2.0"),
        ({"ngram": 1}, "ngram is 1"),
        ({"guesses": "many"}, 'guesses is .many.; expected an int of at least 0 or "auto"'),
        ({"guesses": True}, "guesses is True"),
        ({"pool": []}, "expected an NgramPool"),
        ({"temperature": 0.5}, "do_sample"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
    ],
)
def test_invalid_settings_raise(settings, message):
    for decode in (msrnn.lookahead, msrnn.stream_lookahead):
        with pytest.raises(Error, match=message):
            decode(tiny_cell(), random_tokens(1, 1, 3), **{"max_new_tokens": 3, **settings})


def test_a_pool_of_another_vocabulary_raises():
    pool = msrnn.NgramPool()
    pool.add([1, 2, 50])
    with pytest.raises(Error, match="pool holds token id 50; expected ids below 50"):
        msrnn.lookahead(tiny_cell(), random_tokens(1, 1, 3), max_new_tokens=3, pool=pool)


@pytest.mark.parametrize("reduction", ["full", "tova:28", "h2o:28", "sinks:28:4", "window:28"])
def test_on_the_real_weights(reduction, smollm, gguf_path, figure):
    """In float32 the tokens and the retained positions are those of greedy decoding."""
    import converters

    prompt = converters.tokenizer(gguf_path).encode("def fibonacci(n):\n    if n < 2:\n        return n\n").ids
    text, state = torch.tensor([prompt]), smollm.initial_state(1, reduction)
    greedy, end, _ = msrnn.generate(smollm, text, state, max_new_tokens=24)
    assert end.clock.item() > 40  # so rows are evicted
    results = {
        "jacobi, block 8": jacobi(smollm, text, state, max_new_tokens=24, block=8),
        "lookahead, one draft of 12": msrnn.lookahead(smollm, text, state, max_new_tokens=24, guesses=1),
    }
    for method, (new, after, _, record) in results.items():
        figure(
            f"{record.tokens_per_step:.2f} tokens per forward pass by {method}: SmolLM2-135M, {reduction}, 24 tokens of code"
        )
        assert new.equal(greedy)
        for G, H in zip(after, end, strict=True):
            assert G.positions.sort().values.equal(H.positions.sort().values)
