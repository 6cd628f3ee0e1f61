"""Arguments of any type of the public calls are refused with a short message, or the result is right."""

import tempfile
from dataclasses import fields

import hypothesis.strategies as st
import torch
from hypothesis import given
from support.hostile_values import ANYTHING, CELL, MANY, V, accepted, assert_steps
from support.tiny_models import random_tokens
from support.tiny_tokenizer import tiny_tokenizer

import msrnn
import msrnn.cli.main
from msrnn import H2O, TOVA, Full, Sinks, Window, parse_reduction

# Operators and their spec strings.

WORDS = st.sampled_from(["full", "window", "sinks", "h2o", "h2o-layer", "tova", "tova-head", "TOVA ", "", "top"])
COUNTS = st.one_of(st.integers(-1, 9).map(str), st.sampled_from(["", "9" * 18, "9" * 19, "٣", "1e3", " 4", "0x4", "4.0", "+4"]))
SPECS = st.one_of(st.text(max_size=12), st.builds(lambda w, n: ":".join([w, *n]), WORDS, st.lists(COUNTS, max_size=3)))


@MANY
@given(SPECS)
def test_any_text_is_refused_or_parsed_as_an_operator_with_this_spec_string(text):
    operator = accepted(lambda: parse_reduction(text))
    if operator is not None:
        assert parse_reduction(str(operator)) == operator
        assert_steps(CELL.initial_state(1, text))


@MANY
@given(
    st.sampled_from([Full, Window, Sinks, H2O, TOVA]), st.lists(st.one_of(ANYTHING, st.integers(0, 5)), min_size=1, max_size=3)
)
def test_any_settings_are_refused_or_make_a_working_operator(kind, values):
    operator = accepted(lambda: kind(*values[: len(fields(kind))]))
    if operator is not None:
        assert hash(operator) == hash(operator)
        state = accepted(lambda: CELL.initial_state(1, operator))
        if state is not None:
            assert_steps(state)


@MANY
@given(
    st.one_of(ANYTHING, st.just(1)),
    st.one_of(ANYTHING, st.lists(SPECS, min_size=2, max_size=2), st.just("tova:2")),
    st.one_of(st.none(), ANYTHING),
    st.one_of(st.none(), ANYTHING),
)
def test_any_arguments_of_initial_state(batch_size, reduction, dtype, device):
    state = accepted(lambda: CELL.initial_state(batch_size, reduction, dtype=dtype, device=device))
    if state is not None:
        assert len(state.clock) == batch_size
        if state.clock.device.type == "cpu" and batch_size < 100:
            assert_steps(state)


# Token ids.


def is_valid(x, ndim):
    """Return True for int64 ids of the vocabulary with ``ndim`` axes and at least one sequence."""
    return (
        isinstance(x, torch.Tensor)
        and x.dtype == torch.int64
        and x.ndim == ndim
        and x.shape[0] > 0
        and bool(((x >= 0) & (x < V)).all())
    )


IDS = st.one_of(
    ANYTHING,
    st.lists(st.integers(-1, V), min_size=1, max_size=3).map(torch.tensor),
    st.lists(st.lists(st.integers(0, V - 1), min_size=2, max_size=2), min_size=1, max_size=3).map(torch.tensor),
    st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2), min_size=1, max_size=3).map(torch.tensor),
)


@MANY
@given(IDS, st.sampled_from(["full", "tova:2"]))
def test_any_token_ids(ids, reduction):
    B = len(ids) if isinstance(ids, torch.Tensor) and ids.ndim and len(ids) else 1
    state = CELL.initial_state(B, reduction)
    for step in (CELL.step, CELL.step_):
        stepped = accepted(lambda step=step: step(ids, state.clone()))
        assert (stepped is not None) == is_valid(ids, 1)
    read = accepted(lambda: CELL(ids, state))
    assert (read is not None) == is_valid(ids, 2)
    for decode in (msrnn.generate, lambda *a, **k: [*msrnn.stream(*a, **k)]):
        new = accepted(lambda decode=decode: decode(CELL, ids, state, max_new_tokens=1))
        assert (new is not None) == (is_valid(ids, 2) and ids.shape[1] > 0)
    assert state.clock.tolist() == [0] * B
    if read is not None:
        for t, token in enumerate(ids.T):
            logits, state = CELL.step(token, state)
            torch.testing.assert_close(read[0][:, t], logits, rtol=0, atol=1e-9)


LENGTHS = st.one_of(ANYTHING, st.lists(st.integers(-1, 5), min_size=2, max_size=2).map(torch.tensor))


@MANY
@given(LENGTHS, st.one_of(ANYTHING, st.lists(st.booleans(), min_size=2, max_size=2).map(torch.tensor)))
def test_any_lengths_and_active_rows(lengths, active):
    text = random_tokens(1, 2, 4)
    read = accepted(lambda: CELL(text, lengths=lengths))
    valid = isinstance(lengths, torch.Tensor) and lengths.dtype == torch.int64 and lengths.shape == (2,)
    assert (read is not None) == (lengths is None or (valid and bool(((lengths >= 0) & (lengths <= 4)).all())))
    if valid and read is not None:
        assert read[1].clock.tolist() == lengths.tolist()
    accepted(lambda: msrnn.generate(CELL, text, lengths=lengths, max_new_tokens=1))
    stepped = accepted(lambda: CELL.step(text[:, 0], active=active))
    valid = isinstance(active, torch.Tensor) and active.dtype == torch.bool and active.shape == (2,)
    assert (stepped is not None) == (active is None or valid)


@MANY
@given(
    st.one_of(ANYTHING, st.lists(st.integers(-3, 3), max_size=3), st.lists(st.integers(-3, 3), max_size=3).map(torch.tensor))
)
def test_any_selection(rows):
    _, state = CELL(random_tokens(1, 2, 3))
    picked = accepted(lambda: state.select(rows))
    if picked is not None:
        index = list(range(2))[rows] if isinstance(rows, slice) else [int(i) for i in rows]
        assert all(-2 <= i < 2 for i in index)
        assert torch.equal(picked[0].keys, state[0].keys[index])


@MANY
@given(ANYTHING)
def test_any_argument_of_to_and_any_state(value):
    accepted(lambda: CELL.initial_state(1).to(value))
    assert accepted(lambda: CELL.step(torch.tensor([1]), value)) is None or value is None
    assert accepted(lambda: CELL(torch.tensor([[1]]), value)) is None or value is None


# Decoding.

SETTINGS = st.fixed_dictionaries(
    {"max_new_tokens": st.one_of(st.integers(0, 3), ANYTHING.filter(lambda x: not isinstance(x, int) or x < 4))},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.one_of(ANYTHING, st.floats(0, 2)),
        "top_k": st.one_of(ANYTHING, st.integers(0, 60)),
        "top_p": st.one_of(ANYTHING, st.floats(0, 1)),
        "eos_token_id": st.one_of(ANYTHING, st.integers(0, V), st.lists(st.integers(0, V), max_size=2)),
        "generator": st.one_of(ANYTHING, st.builds(torch.Generator)),
        "stop": st.one_of(st.none(), ANYTHING, st.just(["the", "x"])),
        "tokenizer": st.one_of(st.none(), ANYTHING, st.just(tiny_tokenizer())),
    },
)


@MANY
@given(SETTINGS)
def test_any_settings_of_decoding(chosen):
    text = random_tokens(2, 2, 3)
    done = accepted(lambda: msrnn.generate(CELL, text, **chosen))
    streamed = accepted(lambda: [*msrnn.stream(CELL, text, **chosen)])
    assert (done is None) == (streamed is None)
    if done is not None:
        new, state, logits = done
        assert new.shape[0] == 2
        assert new.shape[1] <= chosen["max_new_tokens"]
        assert bool(((new >= 0) & (new < V)).all())
        assert int(state.clock.max()) == 3 + new.shape[1]
        assert logits.shape == (2, V)


@MANY
@given(
    st.one_of(st.none(), ANYTHING, st.just(torch.randn(2, V)), st.just(torch.full((2, V), torch.nan))),
    st.one_of(st.none(), ANYTHING, st.just(random_tokens(1, 2, 3))),
    st.one_of(st.just(CELL.initial_state(2)), st.none(), ANYTHING),
)
def test_any_logits_tokens_and_state(logits, tokens, state):
    for decode in (msrnn.generate, lambda *a, **k: [*msrnn.stream(*a, **k)], msrnn.lookahead):
        done = accepted(lambda decode=decode: decode(CELL, tokens, state, logits=logits, max_new_tokens=2))
        assert done is None or (logits is None) != (tokens is None)


@MANY
@given(st.one_of(ANYTHING, st.just(torch.randn(2, V))))
def test_any_logits_of_a_saved_state(logits):
    with tempfile.TemporaryDirectory() as folder:
        saved = accepted(lambda: CELL.initial_state(2).save(f"{folder}/state", logits=logits) or True)
        if saved and logits is not None:
            assert msrnn.load_state(f"{folder}/state", logits=True)[1].equal(logits)
