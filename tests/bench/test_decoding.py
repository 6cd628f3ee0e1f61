"""The sections on speculative decoding, with a tiny model that has a tokenizer. No times are asserted."""

import re

import pytest
import torch
from support.tiny_tokenizer import chat_cell, tiny_tokenizer

from msrnn.bench import decoding, prompts
from msrnn.bench.settings import STEPS, Bench
from msrnn.decoding.speculation_result import SpeculationStats


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


def test_ratios_are_tokens_per_second_by_those_of_greedy_decoding(bench, monkeypatch):
    """Greedy decoding takes 2 seconds for 3 tokens, drafts take 1 second, or 4 seconds with one draft of 12."""
    seconds = {"greedy": [2.0], "auto": [1.0], "one draft of 12": [4.0]}

    def time(self, contenders, rounds, **_):
        for run in contenders.values():
            run()
        return {name: seconds[name] for name in contenders}

    monkeypatch.setattr(Bench, "time", time)
    monkeypatch.setattr(decoding, "_greedy", lambda cell, ids, state: [1, 2, 3])
    monkeypatch.setattr(decoding.Continuation, "speculative", lambda self, method: ([1, 2, 3 + len(self.kind) % 2], 1.75))
    rows = list(decoding.decode(bench))
    for row in rows:
        kind, count, method = re.fullmatch(r"(.*) \((\d+)\), .*, (.*)", row.workload).groups()
        rate = {"auto": 3.0, "one draft of 12": 0.75}[method]
        assert (row.value, row.baseline, row.ratio) == (rate, 1.5, rate / 1.5)
        differ = f", {count} texts differ" if len(kind) % 2 else ""
        assert row.note == f"1.75 tokens per forward pass{differ}"
    assert {row.workload.split(", ")[0] for row in rows} >= {"prose (1)", "chat (1)"}


def test_a_forward_pass_is_compared_with_a_step(bench, monkeypatch):
    monkeypatch.setattr(Bench, "time", lambda *_, **__: {"pass": [0.5], "step": [STEPS * 0.25]})
    for row in decoding.passes(bench):
        assert (row.value, row.baseline, row.ratio) == (500, 250, 2)


def test_tokens_per_pass_are_compared_with_one(bench, monkeypatch):
    monkeypatch.setattr(decoding.Continuation, "speculative", lambda self, method: ([-1], 2.5))
    for row in decoding.phrases(bench):
        assert (row.value, row.baseline, row.ratio) == (2.5, 1, 2.5)
        count = row.workload.split("(")[1].split(")")[0]
        assert row.note == f"0 of {count} texts equal to greedy decoding"


def test_drafts_follow_the_prompt_from_the_state_before_its_last_token(bench, monkeypatch):
    called = []

    def lookahead(cell, tokens, state, *, pool, **settings):
        called.append((tokens.tolist(), state.clock.tolist(), pool.lookup(text.ids[:4], 1, 3), settings["guesses"]))
        return torch.tensor([[7]]), state, None, SpeculationStats(*torch.full((3, 2, 1), 3))

    monkeypatch.setattr(decoding, "lookahead", lookahead)
    texts = [text for group in decoding._continuations(bench, "full").values() for text in group]
    for text in texts:
        assert text.speculative({"guesses": 5}) == ([7], 3.0)
        (last,), clock, drafts, guesses = called.pop()
        assert (last, clock, guesses) == ([text.ids[-1]], [len(text.ids) - 1], 5)
        assert drafts[0].tokens  # the pool contains the prompt
    assert len(texts) == 4


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
