"""The benchmark's sections on guessing, on a tiny cell that can talk. No times are asserted."""

import pytest
import torch
from support.tiny_tokenizer import talking_cell, tiny_tokenizer

from msrnn.bench import decoding, prompts
from msrnn.bench.settings import Bench


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(decoding, "COUNT", 8)
    monkeypatch.setattr(decoding, "PROMPTS", [p for p in prompts.PROMPTS if p.name in ("story", "bread", "stack", "letter")])
    cell = talking_cell(dtype=torch.float32)
    ids = torch.arange(99)
    return Bench(lambda dtype: cell, lambda: None, tiny_tokenizer, ids, torch.device("cpu"), tokens=32, size=8, rounds=1)


def test_every_kind_is_set_beside_greedy_decoding(bench):
    rows = list(decoding.decode(bench))
    works = [row.work for row in rows]
    assert len(set(works)) == len(works)
    for form in ("full", "tova:8"):
        told = {work.split(" (")[0] for work in works if f", {form}, " in work}
        assert told <= {"prose", "chat", "code", "quote", decoding.LOOP}
        counts = [int(work.split("(")[1].split(")")[0]) for work in works if f", {form}, auto" in work]
        assert sum(counts) == 4
    for row in rows:
        assert row.unit == "tokens/s"
        assert row.ours > 0 < row.theirs
        assert "tokens a pass" in row.note
        assert "parted" not in row.note


def test_the_papers_setting_counts_tokens_a_pass(bench):
    rows = list(decoding.phrases(bench))
    for row in rows:
        assert row.ours == row.ratio >= 1
        bounds = {decoding.LOOP: "", "code": "≥ 2.2", "quote": "≥ 2.2"}
        assert row.bound == bounds.get(row.work.split(" (")[0], "≥ 1.5")
        count = row.work.split("(")[1].split(")")[0]
        assert row.note == f"{count} of {count} texts as greedy decoding writes them"


def test_what_a_pass_costs(bench):
    rows = list(decoding.passes(bench))
    assert [row.work for row in rows if "full" in row.work] == [f"a pass of {m} tokens, full" for m in decoding.LENGTHS]
    assert len(rows) == 2 * len(decoding.LENGTHS)


@pytest.mark.parametrize(
    ("tokens", "looped"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], False),
        ([9, 8, 7, 6, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2], True),
        ([5] * 8, True),
        ([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8], False),  # said twice is no loop
        ([1, 2], False),
    ],
)
def test_a_loop_is_seen(tokens, looped):
    assert prompts.loops(tokens) == looped
