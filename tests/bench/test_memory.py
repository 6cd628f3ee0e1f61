"""Bytes of H, and what the worker processes of the memory sections measure."""

import pytest
import torch
from support.benchmarks import DIM, HEADS, LAYERS, SIZE, TOKENS, set_times

import msrnn
from msrnn.bench import memory
from msrnn.bench.sections import measure
from msrnn.bench.settings import STEPS
from msrnn.diagnostics import process_memory


def test_bytes_of_a_state(bench):
    rows = {row.workload: row for row in measure(bench, "state-bytes")}
    row_bytes = LAYERS * HEADS * (2 * DIM * 4 + 8)
    assert rows["H after 32 tokens, window:8"].baseline == pytest.approx((TOKENS * row_bytes + 8) / 1e6)
    assert rows["H after 32 tokens, tova:8"].value == pytest.approx((SIZE * row_bytes + 8) / 1e6, rel=0.15)  # one spare row


def test_peak_is_measured_with_and_without_freed_memory(bench, monkeypatch):
    environments = []
    monkeypatch.setattr(memory, "run_in_subprocess", lambda *_, environment: environments.append(environment) or 1)
    list(memory.peak(bench))
    assert environments == [{}, {}, memory.RETURN_FREED_MEMORY, memory.RETURN_FREED_MEMORY]


def test_peak_of_the_long_text_is_compared_with_the_short_text(bench, monkeypatch):
    monkeypatch.setattr(memory, "run_in_subprocess", lambda bench, measure, ids, *_, **__: 1e6 * ids.shape[1])
    for row in memory.peak(bench):
        assert (row.value, row.baseline, row.ratio) == (16 * TOKENS, TOKENS, 16)


def test_memory_at_the_far_position_is_compared_with_the_near_position(bench, monkeypatch):
    def resident(bench, measure, ids, reduction, near, paths):
        for path in paths:
            bench.full_state(bench.cell()).save(path)
        return [2e6, 6e6]

    monkeypatch.setattr(memory, "run_in_subprocess", resident)
    set_times(monkeypatch, near=[STEPS * 0.25], far=[STEPS * 0.5])
    step, row = memory.far_position(bench)
    assert (step.baseline_name, step.value, step.baseline, step.ratio) == ("position 15", 500, 250, 2)
    assert (row.baseline_name, row.value, row.baseline, row.ratio) == ("position 15", 6, 2, 3)


def test_saved_states_have_read_as_many_tokens_as_their_positions(bench, tmp_path):
    paths = [tmp_path / "near", tmp_path / "far"]
    assert all(x > 0 for x in memory._resident(bench.cell(), bench.text(50), "tova:8", 20, paths))
    for path, position in zip(paths, (20, 50), strict=True):
        state = msrnn.load_state(path)
        assert state.clock.tolist() == [position]
        assert state[0].keys.shape[2] == SIZE


def test_the_peak_is_that_above_the_memory_before(bench, monkeypatch):
    monkeypatch.setattr(memory, "reset_peak", lambda device: 100)
    monkeypatch.setattr(memory, "memory_bytes", lambda device, peak=False: 175 if peak else 120)
    assert memory._peak(bench.cell(), bench.text(20), "tova:8") == 75


def test_memory_of_a_gpu_is_that_of_its_allocator(monkeypatch):
    called = []
    for name, value in {"max_memory_allocated": 7, "memory_allocated": 3}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: called.append(name))
    device = torch.device("cuda")
    assert (memory.memory_bytes(device), memory.memory_bytes(device, peak=True)) == (3, 7)
    assert called == ["synchronize"] * 2
    assert memory.reset_peak(device) == 3
    assert called == ["synchronize"] * 2 + ["reset_peak_memory_stats", "synchronize"]


def test_without_proc_the_section_is_skipped(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(process_memory, "CLEAR_REFS", tmp_path / "no folder" / "clear_refs")
    with pytest.raises(memory.SkipBenchmark, match="no /proc"):
        memory.reset_peak(torch.device("cpu"))
