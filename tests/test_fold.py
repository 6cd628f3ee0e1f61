"""Many tokens at once are the step loop, wherever chunks begin and end. (`test_laws.py` holds the rest of the fold's laws.)"""

from pathlib import Path

import pytest
import torch
from tiny import assert_same, close, fold, tiny_cell, tokens

import converters
from msrnn import cell as module

OPERATORS = ["full", "window:0", "window:5", "sinks:6:2", "h2o:6", "h2o-layer:6", "h2o:7:0", "tova:5", "tova-head:5"]


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
@pytest.mark.parametrize("reduction", OPERATORS)
def test_chunks_do_not_show(reduction, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    cell, text = tiny_cell(), tokens(5, 3, 21)
    lengths = torch.tensor([21, 8, 0])
    logits, state = cell(text, cell.initial_state(3, reduction), lengths=lengths)
    expected, end = fold(cell, text, cell.initial_state(3, reduction), lengths)
    close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    last, _ = cell(text, cell.initial_state(3, reduction), lengths=lengths, last_only=True)
    close(last[:2], torch.stack((expected[0, 20], expected[1, 7])), 1e-8)
    assert last[2].isnan().all()


def test_a_late_query_may_love_a_row_that_earlier_ones_ignored():
    """Keys a thousand apart: whatever leaves or stays, no weight may be lost to underflow on the way."""
    cell, text = tiny_cell(), tokens(5, 2, 30)
    for layer in cell.layers:
        layer.q.weight.mul_(40)
    for reduction in ("tova:8", "h2o:8", "tova-head:8"):
        logits, state = cell(text, cell.initial_state(2, reduction))
        expected, end = fold(cell, text, cell.initial_state(2, reduction))
        close(logits, expected, 1e-8)
        assert_same(state, end, 1e-8)


def test_memory_is_not_the_text_squared(monkeypatch):
    """No tensor of the fold grows with T beyond T × width: the largest has a chunk by size + chunk weights per head."""
    seen = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, *a, **k: seen.append(x.numel()) or softmax(x, *a, **k))
    monkeypatch.setattr(module, "CHUNK", 4)
    cell = tiny_cell()
    cell(tokens(1, 1, 40), cell.initial_state(1, "tova:6"))
    assert max(seen) <= cell.config.n_heads * 4 * (6 + 4)


@pytest.mark.parametrize("reduction", ["tova:64", "h2o:64"])
def test_on_the_real_weights(reduction, smollm, gguf_path, figure):
    """Float32: the same positions, here without a single near-tie to excuse."""
    text = (Path(__file__).parents[1] / "LICENSE").read_text()
    ids = torch.tensor([converters.tokenizer(gguf_path).encode(text).ids[:160]])
    folded, state = smollm(ids, smollm.initial_state(1, reduction))
    by_step, end = fold(smollm, ids, smollm.initial_state(1, reduction))
    off = sum(
        sorted(H.positions[0, k].tolist()) != sorted(G.positions[0, k].tolist())
        for H, G in zip(state, end, strict=True)
        for k in range(H.positions.shape[1])
    )
    gap = (folded - by_step).abs().mean().item()
    figure(
        f"{gap:.1e} mean difference of the logits, fold from step loop: SmolLM2-135M, {reduction}, 160 tokens; {off} heads off"
    )
    assert off == 0
    assert gap <= 1e-4
