"""States and caches of transformers: a text that one library has read is continued by the other, as if one had read it all."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.refusals import refusing
from support.tiny_models import assert_same, tiny_cell, tiny_decoder
from support.tiny_references import CASES
from support.transformers_reference import ROPES, float64_reference, tiny_reference
from transformers import DynamicCache, StaticCache

import converters
from msrnn.interop import cache_from_state, state_from_cache
from msrnn.layers.rotary import DynamicNTKRope

TOKENS = torch.randint(3, 61, (2, 30), generator=torch.Generator().manual_seed(1))
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


@pytest.fixture(scope="module")
def llama():
    model = tiny_reference()
    return model, load(model)


def load(model):
    return converters.load(model).requires_grad_(False)


def read(model, tokens, cache=None, **arguments):
    """Return logits of the model and its cache."""
    with float64_reference(model), torch.no_grad():
        out = model(tokens, past_key_values=cache, use_cache=True, **arguments)
    return out.logits, out.past_key_values


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


def test_states_without_a_counterpart_are_refused(llama):
    _, cell = llama
    _, state = cell(TOKENS)
    with refusing("state belongs to another model"):
        cache_from_state(load(tiny_reference(seed=1)), state)
    with refusing("state has int8 rows; expected torch.float64 (see state.to)"):
        cache_from_state(cell, state.to(torch.int8))
    with refusing("state has places inside, with keys that are not rotated; expected absolute positions"):
        cache_from_state(cell, cell(TOKENS, cell.initial_state(2, places="inside"))[1])
    with refusing("state has texts of 7, 30 tokens; expected equal lengths"):
        cache_from_state(cell, cell(TOKENS, lengths=torch.tensor([7, 30]))[1])
    without = state.with_layers(H.keep_rows(H.positions != 4, uniform=True) for H in state)
    with refusing("layer 0 has evicted rows; expected those of all positions from 0 to 29"):
        cache_from_state(cell, without)
    cell = tiny_cell(sliding_window=1)
    with refusing("layer 0 has a window of 1, which the caches of transformers do not handle"):
        cache_from_state(cell, cell(TOKENS % 50)[1])
    alibi = tiny_decoder(positions="alibi")
    with refusing("layer 0: this cell caches learned rows or longer keys"):
        cache_from_state(alibi, alibi(TOKENS[:, :4] % 50)[1])
    with refusing("DynamicNTKRope rotates keys by the length at which they were read; expected at most 6 tokens"):
        cell = tiny_cell(rope=DynamicNTKRope(100.0, 2.0, 6))
        cache_from_state(cell, cell(TOKENS % 50)[1])


def test_caches_that_do_not_fit_the_cell_are_refused(llama):
    model, cell = llama
    _, cache = read(model, TOKENS)
    for wrong, message in {
        tuple(cache): "cache is tuple",
        DynamicCache(): "cache is empty",
        StaticCache(model.config, max_cache_len=40): "layer 0 of the cache is a StaticLayer; expected one of a DynamicCache",
        read(tiny_reference(num_hidden_layers=3), TOKENS)[1]: "cache has 3 layers; expected 2",
        read(tiny_reference(num_key_value_heads=4), TOKENS)[1]: "keys (2, 4, 30, 6); expected (2, 2, S, 6)",
        read(tiny_reference("mistral", sliding_window=9), TOKENS)[1]: "a sliding window of 9; expected that of the cell (full)",
        cache_of(model.float(), TOKENS): "layer 0 of the cache is torch.float32 on cpu; expected torch.float64 on cpu",
    }.items():
        with refusing(message):
            state_from_cache(cell, wrong)
    _, mixed = read(tiny_reference(), TOKENS)
    mixed.layers[1].values = mixed.layers[1].values.float()
    with refusing("layer 1 of the cache is torch.float32 on cpu; expected torch.float64 on cpu"):
        state_from_cache(cell, mixed)
    model.double()
    cache.layers[1].crop(-2)
    with refusing("layer 1 of the cache has read 28 tokens; expected 30, as layer 0"):
        state_from_cache(cell, cache)


def test_a_cache_of_a_text_beyond_the_original_length_is_refused(llama):
    model, cell = llama
    dynamic = type(cell)(replace(cell.config, rope=DynamicNTKRope(100.0, 2.0, 6))).double()
    with refusing("DynamicNTKRope rotates keys by the length at which they were read; expected at most 6 tokens"):
        state_from_cache(dynamic, read(model, TOKENS)[1])


def cache_of(model, tokens):
    with torch.no_grad():
        return model(tokens, use_cache=True).past_key_values


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 29), "attention_mask is float32 of shape (2, 29); expected zeros and ones of shape (2, 30)"),
        (torch.full((2, 30), 2), "expected zeros and ones of shape (2, 30)"),
        (torch.zeros(2, 30), "attention_mask has gaps or rows without tokens"),
        (torch.tensor([1] * 5 + [0] * 5 + [1] * 20).expand(2, 30), "attention_mask has gaps"),
    ],
)
def test_other_masks_are_refused(mask, message, llama):
    model, cell = llama
    with refusing(message):
        state_from_cache(cell, read(model, TOKENS)[1], attention_mask=mask)


def test_the_import_needs_no_transformers():
    code = "import sys, msrnn.interop; print('transformers' in sys.modules)"
    out = subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parents[2], text=True)
    assert out == "False\n"
