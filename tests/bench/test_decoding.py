"""The sections on speculative decoding, with a tiny model that has a tokenizer. No times are asserted."""

import pytest
import torch
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.bench import decoding, prompts
from msrnn.bench.settings import Bench


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_NEW_TOKENS", 8)
    monkeypatch.setattr(decoding, "PROMPTS", [p for p in prompts.PROMPTS if p.name in ("story", "bread", "stack", "letter")])
    cell = chat_cell(dtype=torch.float32)
    ids = torch.arange(99)
    return Bench(lambda dtype: cell, lambda: None, tiny_tokenizer, ids, torch.device("cpu"), tokens=32, size=8, rounds=1)


def test_every_kind_is_compared_with_greedy_decoding(bench):
    rows = list(decoding.decode(bench))
    workloads = [row.workload for row in rows]
    assert len(set(workloads)) == len(workloads)
    for spec in ("full", "tova:8"):
        kinds = {workload.split(" (")[0] for workload in workloads if f", {spec}, " in workload}
        assert kinds <= {"prose", "chat", "code", "quote", decoding.LOOP}
        counts = [int(workload.split("(")[1].split(")")[0]) for workload in workloads if f", {spec}, auto" in workload]
        assert sum(counts) == 4
    for row in rows:
        assert row.unit == "tokens/s"
        assert row.value > 0 < row.baseline
        assert "tokens per forward pass" in row.note
        assert "differ" not in row.note


def test_tokens_per_pass_at_the_setting_of_the_paper(bench):
    rows = list(decoding.phrases(bench))
    assert rows
    for row in rows:
        assert row.value == row.ratio >= 1
        targets = {decoding.LOOP: "", "code": "≥ 2.2", "quote": "≥ 2.2"}
        assert row.target == targets.get(row.workload.split(" (")[0], "≥ 1.5")
        count = row.workload.split("(")[1].split(")")[0]
        assert row.note == f"{count} of {count} texts equal to greedy decoding"


def test_forward_passes_of_every_length_are_measured(bench):
    rows = list(decoding.passes(bench))
    full = [row.workload for row in rows if "full" in row.workload]
    assert full == [f"forward pass of {m} tokens, full" for m in decoding.LENGTHS]
    assert len(rows) == 2 * len(decoding.LENGTHS)
