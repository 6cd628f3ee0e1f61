"""A part of ``tests/support/unroll_agrees.py``: a short text on the real weights, and differences that it must find."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import support.unroll_agrees
import torch
from support.tiny_models import random_tokens, tiny_cell

import converters
from msrnn import Reduction
from msrnn.bench.prompts import PROMPTS


@pytest.mark.parametrize("reduction", ["tova:16", "morphkv:32:8"])
def test_unroll_evicts_as_the_step_loop_on_real_weights(reduction, smollm, gguf_path, figure):
    tokenizer = converters.tokenizer(gguf_path)
    text = tokenizer.encode(PROMPTS[0].text * 3).ids[:64]
    found = support.unroll_agrees.compare(smollm, torch.tensor(text), reduction)
    assert found.evictions > 1000
    assert found.holds(torch.float32)
    figure(f"{len(found.gaps)} of {found.evictions} evictions differ: {reduction}, float32, {len(text)} tokens")


def test_8_bit_rows_on_real_weights_differ_as_bfloat16_does(smollm, gguf_path, figure):
    """In float32 the paths round sums differently, so a number between two levels can be rounded to either."""
    tokenizer = converters.tokenizer(gguf_path)
    text = tokenizer.encode(PROMPTS[0].text * 3).ids[:40]
    found = support.unroll_agrees.compare(smollm, torch.tensor(text), "tova:16", kv_dtype="int8")
    assert found.evictions == 30 * 24
    assert found.holds(torch.bfloat16)
    figure(f"{len(found.gaps)} of {found.evictions} evictions differ: 8-bit rows, tova:16, float32, {len(text)} tokens")


@dataclass(frozen=True)
class DiffersByPath(Reduction):
    """A class with a false flag: its score depends on the number of columns, which differs between the two paths."""

    ripple: float = 1e-6
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation):
        columns = torch.arange(observation.positions.shape[-1])
        return observation.weights.mean((1, 2))[:, None] * (1 + self.ripple * (columns % 2))


@pytest.mark.parametrize(("ripple", "dtype", "holds"), [(1e-6, torch.float32, True), (0.1, torch.float32, False)])
def test_differing_evictions_are_found_and_measured(ripple, dtype, holds):
    cell = tiny_cell(dtype=dtype)
    found = support.unroll_agrees.compare(cell, random_tokens(3, 1, 40)[0], DiffersByPath(6, ripple))
    assert found.holds(dtype) == holds
    assert bool(found.gaps) != holds


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("reduction", ["full", "h2o:5", "tova:5", "window:0"])
def test_paths_agree_in_float64(reduction, kv_dtype):
    found = support.unroll_agrees.compare(tiny_cell(), random_tokens(3, 1, 24)[0], reduction, kv_dtype=kv_dtype)
    assert not found.gaps
    assert found.free_rows == 0
    assert found.largest < 1e-9
    assert found.evictions == {"full": 0, "h2o:5": 2 * 2 * 19, "tova:5": 2 * 19, "window:0": 2 * 24}[reduction]
