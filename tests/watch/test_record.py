"""What is kept of an observed text: every number of a visible row, in the order of the document."""

import pytest
import torch
from support.tiny_families import tiny_family
from support.tiny_models import random_tokens, tiny_cell

from msrnn.reductions.registry import parse_reduction
from msrnn.watch import run
from msrnn.watch.observe import observe

T = 23


@pytest.mark.parametrize("part", [1, 5, 64])
@pytest.mark.parametrize("spec", ["tova:5", "tova-head:5", "h2o:5", "window:5", "full"])
def test_numbers_of_a_text_read_in_parts_are_those_of_one_reading(spec, part, monkeypatch):
    check(tiny_cell(), spec, part, monkeypatch)


def test_learned_rows_are_left_out(monkeypatch):
    check(tiny_family("granite_swa"), "tova:5", 5, monkeypatch)


def check(cell, spec, part, monkeypatch):
    tokens, sizes = random_tokens(2, 1, T) % cell.config.vocab_size, []
    monkeypatch.setattr(run, "PART_TOKENS", part)
    monkeypatch.setattr(run, "observe", lambda c, some, state: sizes.append(some.shape[1]) or observe(c, some, state))
    found = run.observe_run(cell, tokens[0].tolist(), parse_reduction(spec), 0)
    assert (sum(sizes), max(sizes)) == (T, min(part, T))
    logits, layers, _ = observe(cell, tokens, cell.initial_state(1, spec))
    for record, layer in zip(found.layers, layers, strict=True):
        assert len(record.weights) == len(record.scores) == len(layer.weights)
        assert torch.equal(record.evicted, layer.evicted)
        for one, other in zip(record.decisions, layer.decisions(), strict=True):
            torch.testing.assert_close(one, other, equal_nan=True)
        for head, positions in enumerate(layer.positions.tolist()):
            pairs = [(positions.index(p), t) for p in range(T) for t in range(T) if layer.visible[head, t, positions.index(p)]]
            rows, steps = torch.tensor(pairs).T
            torch.testing.assert_close(record.weights[head], layer.weights[head, steps, rows])
            torch.testing.assert_close(record.scores[head], layer.scores[head, steps, rows])
    probabilities = logits.softmax(-1)
    torch.testing.assert_close(
        found.next_probability[:-1].double(), probabilities[:-1].gather(1, tokens[0, 1:, None])[:, 0], rtol=1e-6, atol=1e-7
    )
    assert found.next_probability[-1].isnan()
    assert torch.equal(found.top_ids, logits.topk(run.TOP_TOKENS).indices)
