"""The sections on single steps: units, bytes read, and the direction of the ratio."""

import pytest
import torch
from support.benchmarks import SIZE, set_times
from support.tiny_models import tiny_cell

from msrnn.bench import step
from msrnn.bench.baselines.transformers import Transformers
from msrnn.bench.settings import STEPS


def test_times_become_milliseconds_per_step(monkeypatch, bench):
    set_times(monkeypatch, msrnn=[STEPS * 0.5], transformers=[STEPS * 0.25])
    row = next(iter(step.small_unroll(bench)))
    assert (row.value, row.baseline, row.ratio) == (500.0, 250.0, 2.0)


def test_step_is_compared_with_in_place_step(monkeypatch, bench):
    set_times(monkeypatch, step=[STEPS * 0.5], step_=[STEPS * 0.25])
    for row in step.pure_step(bench):
        assert (row.value, row.baseline_name, row.baseline, row.ratio) == (500.0, "step_", 250.0, 2.0)


def test_the_baseline_steps_at_the_length_of_the_full_state(monkeypatch, bench):
    lengths, rows = [], []
    monkeypatch.setattr(Transformers, "step", lambda self, token, cache: lengths.append(cache.get_seq_length()))
    monkeypatch.setattr(step, "in_place_step", lambda cell, state: rows.append(state) or (lambda token: None))
    list(step.step(bench))
    assert set(lengths) == {SIZE}
    assert [state[0].keys.shape[2] for state in rows] == [SIZE] * 2
    assert [state.dtype for state in rows] == [torch.float32, torch.bfloat16]
    rows.clear()
    list(step.batch(bench))
    assert [state[0].keys.shape[::2] for state in rows] == [(step.BATCH_SIZE, SIZE)]


def test_share_of_the_bandwidth(monkeypatch, bench):
    memory = sum(x.numel() for x in bench.cell().parameters()) * 4
    assert step.bytes_read(bench.cell()) == memory  # tied: the embedding is also the LM head
    set_times(monkeypatch, step=[0.1, 0.2], sum=[0.3, 0.3])
    (row,) = step.bandwidth(bench)
    rate, maximum = STEPS * memory / 1e9, STEPS * step.SUMMED_BYTES / 0.3 / 1e9
    assert row.value == pytest.approx((rate / 0.1 + rate / 0.2) / 2)
    assert row.baseline == pytest.approx(maximum)
    assert row.ratio == pytest.approx(row.value / maximum)


def test_untied_embedding_is_not_counted_as_read():
    cell = tiny_cell(dtype=torch.bfloat16, tied=False)
    rest = sum(x.numel() for name, x in cell.named_parameters() if not name.startswith("embed"))
    assert step.bytes_read(cell) == 2 * rest
