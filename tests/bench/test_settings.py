"""Settings of a run: warm-up, texts, and repeated steps."""

import pytest
import torch
from support.benchmarks import SIZE, TOKENS

from msrnn.bench.result import SkipBenchmark
from msrnn.bench.settings import STEPS, repeated


def test_warm_up_is_not_counted(bench):
    called = []
    spent = bench.time({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert [len(times) for times in spent.values()] == [2, 2]
    assert sorted(called) == ["a"] * 3 + ["b"] * 3


def test_repeated_steps_cycle_through_the_tokens():
    read = []
    steps = repeated(lambda token: read.append(token.tolist()), torch.tensor([[1, 2, 3], [4, 5, 6]]))
    steps()
    steps()
    assert read == ([[1, 4], [2, 5], [3, 6]] * STEPS)[: 2 * STEPS]


def test_text_that_is_too_short_is_refused(bench):
    assert torch.equal(bench.text(3, start=5)[0], bench.ids[5:8])
    with pytest.raises(SkipBenchmark, match="the text has 512 tokens; expected at least 513"):
        bench.text(16 * TOKENS, start=1)


def test_the_full_state_has_read_one_token_more_than_its_size(bench):
    state = bench.full_state(bench.cell())
    assert state.clock.tolist() == [SIZE + 1]
    assert str(state[0].reduction) == f"tova:{SIZE}"
    assert bench.full_state(bench.cell(), "full", 5)[0].keys.shape[2] == 5


def test_last_model_is_cached(bench):
    cell, baseline = bench.cell(), bench.transformers()
    assert bench.cell() is cell
    assert bench.transformers() is baseline
    half = bench.cell(torch.bfloat16)
    assert half is not cell
    assert bench.cell(torch.bfloat16) is half
