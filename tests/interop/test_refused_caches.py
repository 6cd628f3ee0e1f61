"""Caches, masks and states without a counterpart are refused in one sentence."""

from dataclasses import replace

import pytest
import torch
from support.dynamic_caches import TOKENS, load, read
from support.refusals import refusing
from support.tiny_models import assert_same, tiny_cell, tiny_decoder
from support.transformers_reference import tiny_reference
from transformers import DynamicCache, StaticCache

from msrnn.interop import cache_from_state, state_from_cache
from msrnn.layers.rotary import DynamicNTKRope


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


@pytest.mark.parametrize("name", ["keys", "values"])
@pytest.mark.parametrize("number", [torch.nan, -torch.inf])
def test_numbers_that_are_not_finite_are_refused_except_in_padding(llama, name, number):
    model, cell = llama
    mask = torch.arange(30).expand(2, 30) >= torch.tensor([[3], [0]])
    _, cache = read(model, TOKENS, attention_mask=mask.long())
    expected = state_from_cache(cell, cache, attention_mask=mask)
    getattr(cache.layers[1], name)[0, 1, 2] = number  # padding
    assert_same(state_from_cache(cell, cache, attention_mask=mask), expected, 0)
    getattr(cache.layers[1], name)[0, 1, 3] = number
    with refusing("layer 1 of the cache has NaN or infinite keys or values; expected finite numbers"):
        state_from_cache(cell, cache, attention_mask=mask)


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
