"""The section on captured steps, with a recording on the CPU in place of a CUDA graph."""

import sys

from support.benchmarks import set_times
from support.tape import Tape

from msrnn.bench.sections import measure
from msrnn.bench.settings import STEPS
from msrnn.cell import capture


def test_captured_step_is_compared_with_the_step_and_with_transformers(monkeypatch, bench):
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    rows = list(measure(bench, "captured"))
    assert [row.note for row in rows] == [""] * 4
    assert [row.workload for row in rows[::2]] == [f"captured step, tova:8, {dtype}" for dtype in ("float32", "bfloat16")]
    assert [row.baseline_name for row in rows] == ["step_", "transformers, step at length 8"] * 2
    assert all(row.value > 0 and row.baseline > 0 for row in rows)


def test_ratio_without_transformers(monkeypatch, bench):
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    monkeypatch.setitem(sys.modules, "transformers", None)
    set_times(monkeypatch, captured=[STEPS * 0.1], step_=[STEPS * 0.4])
    row, _ = measure(bench, "captured")
    assert (row.value, row.baseline, row.ratio) == (100, 400, 0.25)


def test_other_devices_are_the_note(bench):
    assert [row.note for row in measure(bench, "captured")] == ["capture: the cell is on cpu; expected cuda, or step_ instead"]
