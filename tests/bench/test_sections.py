"""Every section yields its rows; failures become notes."""

import sys

import pytest
import torch
from support.benchmarks import TOKENS

from msrnn.bench.curve import curve
from msrnn.bench.sections import SECTIONS, measure
from msrnn.bench.settings import Bench
from msrnn.threads import available_cpus

WORKLOADS = {
    "unroll": ["read 32 tokens, tova:8", "… h2o:8", "… window:8", "… sinks:8:4", "… full"],
    "long": ["read 128 tokens, tova:8"],
    "bfloat16": ["read 32 tokens, tova:8, bfloat16"],
    "ragged": ["read 8 texts of 4 … 32 tokens, tova:8"],
    "iterations": ["iterations per block, 32 tokens, tova:8", "… h2o:8"],
    "step": ["step_, tova:8, float32", "… bfloat16"],
    "busy": [
        f"step_, tova:8, float32, mean next to {available_cpus()} busy processes, {words}: {torch.get_num_threads()}"
        for words in ("threads", "use_idle_cpus, threads")
    ],
    "bandwidth": ["parameters read in a step_, tova:8, float32"],
    "pure-step": ["step, tova:8, position 9", "step, full, position 62"],
    "small-unroll": ["unroll of 16 tokens on tova:8"],
    "batch": ["step_ at batch 16, tova:8"],
    "peak": [f"peak over the parameters, read 512 tokens, tova:8{more}" for more in ("", ", freed memory given back")],
    "far-position": ["step_, tova:8, position 312", "resident memory, tova:8, position 312"],
    "state-bytes": ["H after 32 tokens, tova:8", "… h2o:8", "… window:8"],
}
TARGETS = {
    "unroll": ["≤ 1.25", "≤ 1.5", "≤ 1", "≤ 1", "≤ 1"],
    "long": ["< 1"],
    "bfloat16": ["≤ 1.15"],
    "ragged": ["≥ 0.8"],
    "iterations": ["", ""],
    "step": ["≤ 0.65", "≤ 0.7"],
    "busy": ["≤ 1", "≤ 1"],
    "bandwidth": ["≥ 0.45 (aim 0.5)"],
    "pure-step": ["≤ 1.1", "≤ 1.15"],
    "small-unroll": ["≤ 1.5 (aim 1.3)"],
    "batch": ["≤ 2"],
    "peak": ["≤ 1.1", "≤ 1.1"],
    "far-position": ["≤ 1.03", "≤ 1.01"],
    "state-bytes": ["", "", ""],
}
"""Of each row, because a target is a bound for the ratio of one of two measured values."""


@pytest.mark.parametrize("name", WORKLOADS)
def test_section_has_its_rows(name, bench):
    rows = list(measure(bench, name))
    for row, workload in zip(rows, WORKLOADS[name], strict=True):
        assert row.workload.endswith(workload.removeprefix("… ")), row
        assert row.value > 0
        assert row.note == ""
    assert [row.target for row in rows] == TARGETS[name]
    assert [row.reached is None for row in rows] == [not target for target in TARGETS[name]]


def test_every_section_is_tested():
    assert SECTIONS.keys() - WORKLOADS.keys() == {"kvpress", "llama-cpp", "captured"}


def test_without_transformers_rows_have_a_note(monkeypatch, bench):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in ("unroll", "long", "step", "busy", "small-unroll", "batch"):
        for row in measure(bench, name):
            assert row.value > 0
            assert (row.ratio, row.reached) == (None, None)
            assert row.note == "transformers is not installed; pip install 'msrnn[transformers]'"
    assert {point.name for point in curve(bench)} == {"tova:8", "full"}


def test_text_that_is_too_short_is_the_note(bench):
    bench.ids = bench.ids[: TOKENS + 3]
    assert [row.note for row in measure(bench, "long")] == ["the text has 35 tokens; expected at least 128"]
    assert all(row.ratio for row in measure(bench, "small-unroll"))


def test_out_of_memory_is_the_note(monkeypatch, bench):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nand more")

    monkeypatch.setattr(Bench, "cell", fail)
    assert [row.note for row in measure(bench, "state-bytes")] == ["RuntimeError: DefaultCPUAllocator: can't allocate memory"]
