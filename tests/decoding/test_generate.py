"""Plain decoding against a loop over the step."""

import inspect

import pytest
import torch
from support.tiny_models import tiny_cell

import msrnn

CELL = tiny_cell()
V = CELL.config.vocab_size
PROMPT = torch.randint(0, V, (3, 9), generator=torch.Generator().manual_seed(3))


def step_loop(prompt, reduction, count):
    """Greedy decoding of one sequence with `step`."""
    state = CELL.initial_state(1, reduction)
    for token in prompt:
        logits, state = CELL.step(token[None], state)
    new = []
    for _ in range(count):
        new.append(int(logits[0].argmax()))
        logits, state = CELL.step(torch.tensor(new[-1:]), state)
    return new, state


def positions(state):
    return [sorted(H.positions[0, k].tolist()) for H in state for k in range(H.positions.shape[1])]


@pytest.mark.parametrize("reduction", ["full", "window:4", "sinks:5:2", "h2o:6", "tova:5", "tova-head:5"])
def test_greedy_is_the_step_loop(reduction):
    new, state, _ = msrnn.generate(CELL, PROMPT[:1], CELL.initial_state(1, reduction), max_new_tokens=7)
    expected, end = step_loop(PROMPT[0], reduction, 7)
    assert new[0].tolist() == expected
    assert state.clock.item() == 16
    assert positions(state) == positions(end)


def test_ragged_prompts_are_decoded_independently():
    lengths = torch.tensor([9, 2, 5])
    new, state, _ = msrnn.generate(CELL, PROMPT, CELL.initial_state(3, "tova:4"), max_new_tokens=6, lengths=lengths)
    assert state.clock.tolist() == (lengths + 6).tolist()
    for b, length in enumerate(lengths):
        assert new[b].tolist() == step_loop(PROMPT[b, :length], "tova:4", 6)[0]


def test_decoding_continues_from_the_returned_state():
    first, state, _ = msrnn.generate(CELL, PROMPT, CELL.initial_state(3, "h2o:4"), max_new_tokens=4)
    follow = torch.randint(0, V, (3, 3), generator=torch.Generator().manual_seed(4))
    second, _, _ = msrnn.generate(CELL, follow, state, max_new_tokens=4)
    once, _, _ = msrnn.generate(CELL, torch.cat((PROMPT, first, follow), 1), CELL.initial_state(3, "h2o:4"), max_new_tokens=4)
    assert torch.equal(second, once)


def test_the_given_state_is_not_modified():
    _, state = CELL(PROMPT, CELL.initial_state(3, "tova:4"))
    before = state.clone()
    msrnn.generate(CELL, PROMPT, state, max_new_tokens=4)
    for H, kept in zip(state, before, strict=True):
        assert all(torch.equal(H.rows[name], kept.rows[name]) for name in H.rows)
    assert torch.equal(state.clock, before.clock)


def test_a_finished_row_repeats_its_eos_and_its_state_is_unchanged():
    free, _, _ = msrnn.generate(CELL, PROMPT, max_new_tokens=12)
    eos = [int(free[0, 2]), int(free[1, 5])]  # two ids, so that rows end at different steps
    ends = [next((n for n, x in enumerate(row.tolist()) if x in eos), None) for row in free]
    assert ends[0] is not None
    assert ends[1] is not None
    new, state, _ = msrnn.generate(CELL, PROMPT, max_new_tokens=12, eos_token_id=eos)
    for b, end in enumerate(ends):
        stop = new.shape[1] if end is None else end + 1
        assert new[b, :stop].tolist() == free[b, :stop].tolist()
        assert set(new[b, stop:].tolist()) <= {int(new[b, stop - 1])}
        assert state.clock[b] == 9 + stop
        alone, alone_state = step_loop(PROMPT[b], None, stop)
        assert new[b, :stop].tolist() == alone
        for H, own in zip(state, alone_state, strict=True):
            retained = H.positions[b, 0]
            assert sorted(retained[retained >= 0].tolist()) == sorted(own.positions[0, 0].tolist())


def test_decoding_ends_when_every_row_is_finished():
    free, _, _ = msrnn.generate(CELL, PROMPT[:1], max_new_tokens=12)
    first = free[0].tolist().index(int(free[0, 3]))
    new, _, _ = msrnn.generate(CELL, PROMPT[:1], max_new_tokens=12, eos_token_id=int(free[0, 3]))
    assert new.shape == (1, first + 1)


def test_stream_yields_the_tokens_of_generate_and_separate_states():
    new, state, _ = msrnn.generate(CELL, PROMPT, CELL.initial_state(3, "tova:4"), max_new_tokens=6)
    items = list(msrnn.stream(CELL, PROMPT, CELL.initial_state(3, "tova:4"), max_new_tokens=6))
    assert torch.equal(torch.stack([token for token, _ in items], 1), new)
    assert [s.clock[0].item() for _, s in items] == list(range(10, 16))  # an older state is not updated
    branch, _, _ = msrnn.generate(CELL, new[:, 3:4], items[2][1], max_new_tokens=2)
    assert torch.equal(branch, new[:, 4:6])
    assert [positions(items[-1][1])] == [positions(state)]


def test_no_graph_and_no_inference_tensors():
    trainable = tiny_cell(frozen=False)
    new, state, _ = msrnn.generate(trainable, PROMPT, max_new_tokens=2)
    assert not state.requires_grad
    assert not new.is_inference()
    for _, streamed in msrnn.stream(trainable, PROMPT, max_new_tokens=2):
        assert torch.is_grad_enabled()  # the gradient mode of the caller, between tokens
        assert not streamed.requires_grad
    logits, _ = trainable.step(new[:, -1], state)
    assert logits.requires_grad


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-4}])
def test_sampling_with_extreme_settings_is_greedy(settings):
    greedy, _, _ = msrnn.generate(CELL, PROMPT, max_new_tokens=8)
    drawn, _, _ = msrnn.generate(CELL, PROMPT, max_new_tokens=8, do_sample=True, generator=generator(0), **settings)
    assert torch.equal(greedy, drawn)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_equal_seeds_repeat_and_the_global_generator_is_unchanged():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = [msrnn.generate(CELL, PROMPT, max_new_tokens=8, do_sample=True, generator=generator(s))[0] for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.5}, "do_sample"),
        ({"top_k": 5}, "do_sample"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "temperature": float("nan")}, "temperature"),
        ({"do_sample": True, "top_k": 0}, "top_k"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"eos_token_id": V}, "eos_token_id"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"lengths": torch.tensor([1, 0, 2])}, "lengths"),
    ],
)
def test_invalid_settings_raise(settings, message):
    for decode in (msrnn.generate, msrnn.stream):
        with pytest.raises(msrnn.Error, match=message):
            decode(CELL, PROMPT, **{"max_new_tokens": 2, **settings})


def test_an_empty_prompt_raises():
    with pytest.raises(msrnn.Error, match="empty"):
        msrnn.generate(CELL, PROMPT[:, :0], max_new_tokens=2)


@pytest.mark.parametrize("decode", [msrnn.jacobi, msrnn.stream_jacobi, msrnn.lookahead, msrnn.stream_lookahead])
def test_the_signature_lists_all_arguments_of_generate(decode):
    parameters = inspect.signature(decode).parameters
    assert inspect.signature(msrnn.generate).parameters.items() <= parameters.items()
    with pytest.raises(TypeError, match="unexpected keyword argument 'top'"):
        decode(CELL, PROMPT, max_new_tokens=3, top=3)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}])
def test_a_model_with_nan_raises_one_sentence(settings):
    """Also if the first NaN comes after the prompt."""
    damaged, late = tiny_cell(tied=False), tiny_cell(tied=False)
    damaged.layers[0].down.weight.data[0, 0] = torch.nan
    new = msrnn.generate(late, PROMPT[:1], max_new_tokens=9).tokens[0].tolist()
    late.embed.weight.data[next(i for i in new if i not in PROMPT[0])] = torch.nan
    assert torch.isfinite(late(PROMPT[:1], last_only=True)[0]).all()
    functions = (msrnn.generate, lambda *a, **k: [*msrnn.stream(*a, **k)], msrnn.jacobi, msrnn.lookahead)
    for cell in (damaged, late) if not settings else (damaged,):
        for decode in functions:
            with pytest.raises(msrnn.Error, match="largest logit of row 0 is nan; expected a finite number"):
                decode(cell, PROMPT[:1], max_new_tokens=9, **settings)
