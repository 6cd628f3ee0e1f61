"""States and caches of transformers: a text that one library has read is continued by the other, as if one had read it all."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.dynamic_caches import TOKENS, load, read
from support.refusals import refusing
from support.tiny_models import assert_same
from support.tiny_references import CASES
from support.transformers_reference import ROPES, tiny_reference
from transformers import DynamicCache

from msrnn.interop import cache_from_state, state_from_cache

READ = 20
MODELS = {
    "llama": ("llama", {}),
    **{f"llama, {name}": ("llama", {"rope_parameters": ROPES[name], "head_dim": 16}) for name in ("llama3", "yarn")},
    "mistral, window 7": ("mistral", {"sliding_window": 7}),
    "mistral, window 2": ("mistral", {"sliding_window": 2}),
    "mistral, window beyond the text": ("mistral", {"sliding_window": 21}),
    **{name: case for name, case in CASES.items() if case[0] != "granite_swa"},
}
BOUND = 1e-9


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """A model of transformers, and the cell that is loaded from it."""
    kind, fields = MODELS[request.param]
    model = tiny_reference(kind, **fields)
    return model, load(model)


def worst(found, expected):
    return (found - expected).abs().max().item()


def test_a_text_read_by_transformers_continues_in_msrnn(pair, request, figure):
    model, cell = pair
    _, cache = read(model, TOKENS[:, :READ])
    state = state_from_cache(cell, cache)
    own = cell(TOKENS[:, :READ])[1]
    assert_same(state, own, BOUND)
    expected, _ = read(model, TOKENS)
    logits, _ = cell(TOKENS[:, READ:], state)
    difference = worst(logits, expected[:, READ:])
    figure(f"{difference:.1e} from transformers in float64, read there and continued here: {request.node.callspec.id}")
    assert difference <= BOUND
    for i in range(READ, TOKENS.shape[1]):  # and in place
        logits, state = cell.step_(TOKENS[:, i], state)
        assert worst(logits, expected[:, i]) <= BOUND


def test_a_text_read_by_msrnn_continues_in_transformers(pair, request, figure):
    model, cell = pair
    _, state = cell(TOKENS[:, :READ])
    before = state.clone()
    cache = cache_from_state(cell, state)
    expected, reference = read(model, TOKENS)
    parts = []
    for token in TOKENS[:, READ:].split((4, 1, 5), dim=1):
        logits, cache = read(model, token, cache)
        parts.append(logits)
    difference = worst(torch.cat(parts, dim=1), expected[:, READ:])
    figure(f"{difference:.1e} from transformers in float64, read here and continued there: {request.node.callspec.id}")
    assert difference <= BOUND
    assert_same(state, before, 0)
    assert cache.is_sliding == reference.is_sliding
    assert cache.get_seq_length() == TOKENS.shape[1]


def test_a_state_there_and_back_is_the_same(pair):
    _, cell = pair
    _, state = cell(TOKENS)
    assert_same(state_from_cache(cell, cache_from_state(cell, state)), state, 0)


def test_a_cache_made_without_windows_has_more_rows_than_the_state():
    """``DynamicCache()`` keeps all rows; the mask of the model hides those outside the windows."""
    model = tiny_reference("mistral", sliding_window=7)
    cell = load(model)
    _, cache = read(model, TOKENS, DynamicCache())
    assert cache.layers[0].keys.shape[2] == TOKENS.shape[1]
    state = state_from_cache(cell, cache)
    assert state[0].keys.shape[2] == 6
    assert_same(state, cell(TOKENS)[1], BOUND)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_has_the_states_of_its_texts(kind, side):
    model = tiny_reference(kind, **({"sliding_window": 9} if kind == "mistral" else {}))
    cell, lengths = load(model), (READ, 13)
    mask = torch.arange(READ) < torch.tensor(lengths)[:, None]
    tokens = TOKENS[:, :READ].clone()
    if side == "left":
        mask = mask.flip(1)
        tokens[1] = torch.cat((TOKENS[1, 13:READ], TOKENS[1, :13]))
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    _, cache = read(model, tokens, DynamicCache(), attention_mask=mask.long(), position_ids=positions)
    state = state_from_cache(cell, cache, attention_mask=mask)
    assert state.clock.tolist() == list(lengths)
    _, own = cell(TOKENS[:, :READ], lengths=torch.tensor(lengths))
    more = torch.tensor([[5, 6, 7], [8, 9, 10]])
    found, expected = cell(more, state), cell(more, own)
    assert worst(found[0], expected[0]) <= BOUND
    assert_same(found[1], expected[1], BOUND)


def test_windows_that_have_lost_tokens_of_a_text_padded_on_the_right_are_refused():
    model = tiny_reference("mistral", sliding_window=9)
    mask = torch.arange(READ) < torch.tensor([READ, 10])[:, None]
    _, cache = read(model, TOKENS[:, :READ], attention_mask=mask.long())
    with refusing("layer 0 of the cache has the newest 8 of 20 tokens; expected all that window:8 retains of each text"):
        state_from_cache(load(model), cache, attention_mask=mask)


def test_an_operator_that_would_not_have_evicted_continues(llama):
    model, cell = llama
    _, cache = read(model, TOKENS[:, :READ])
    state = state_from_cache(cell, cache, "tova:20")
    logits, state = cell(TOKENS[:, READ:], state)
    expected, own = cell(TOKENS, cell.initial_state(2, "tova:20"))
    assert worst(logits, expected[:, READ:]) <= BOUND
    assert_same(state, own, BOUND)
    with refusing("tova-head:19/30 and the published model (full) differ beyond 19"):
        state_from_cache(cell, cache, "tova-head:19/30")
    with refusing("tova:19 and the published model (full) differ beyond 19"):
        state_from_cache(cell, cache, "tova:19")
    with refusing("layer 0: h2o:30 needs statistics of the tokens that were read"):
        state_from_cache(cell, cache, "h2o:30")


def test_a_bounded_state_becomes_a_cache_until_a_row_is_evicted(llama):
    model, cell = llama
    logits, _ = read(model, TOKENS[:, :READ])
    _, state = cell(TOKENS[:, :9], cell.initial_state(2, "h2o:9"))
    assert worst(read(model, TOKENS[:, 9:READ], cache_from_state(cell, state))[0], logits[:, 9:]) <= BOUND
    _, state = cell(TOKENS[:, 9:10], state)
    with refusing("layer 0: 10 tokens were read, and h2o:9 and the published model (full) differ beyond 9"):
        cache_from_state(cell, state)


def test_the_import_needs_no_transformers():
    code = "import sys, msrnn.interop; print('transformers' in sys.modules)"
    out = subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[2], text=True)
    assert out == "False\n"
