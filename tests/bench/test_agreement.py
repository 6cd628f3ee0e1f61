"""The section that checks the equality of all paths: its rows, and differences of the captured step and of lookahead."""

from types import SimpleNamespace

import pytest
from support.tape import Tape

import msrnn
from msrnn.bench import agreement
from msrnn.bench.sections import measure
from msrnn.cell import capture

OPERATORS = ("tova:8", "h2o:8", "window:8")


def test_every_path_is_compared_in_every_dtype(monkeypatch, bench):
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    rows = {row.workload: row for row in measure(bench, "agreement")}
    expected = [f"step and many-token path, {spec}, {dtype}" for dtype in ("float32", "bfloat16") for spec in OPERATORS]
    expected[3:3] = ["captured step and step_, tova:8, float32", "lookahead and generate, tova:8, float32"]
    expected.append("captured step and step_, tova:8, bfloat16")
    assert list(rows) == expected
    assert rows["captured step and step_, tova:8, float32"].value == 0
    assert rows["lookahead and generate, tova:8, float32"].note == "all tokens equal"


def test_on_a_cpu_the_captured_step_is_a_note(bench):
    notes = [row.note for row in measure(bench, "agreement") if row.workload.startswith("captured")]
    assert notes == ["capture: the cell is on cpu; expected cuda, or step_ instead"] * 2


def test_other_results_end_the_run(monkeypatch, bench):
    class Wrong(Tape):
        def replay(self):
            super().replay()
            self.operations[-1][1][0].add_(1)

    monkeypatch.setitem(capture.GRAPHS, "cpu", Wrong)
    with pytest.raises(msrnn.Error, match=r"^captured step and step_, tova:8, float32: "):
        list(measure(bench, "agreement"))
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    real = agreement.lookahead
    monkeypatch.setattr(agreement, "lookahead", lambda *a, **k: SimpleNamespace(tokens=real(*a, **k).tokens + 1))
    with pytest.raises(msrnn.Error, match=r"^lookahead and generate, tova:8, float32: the tokens differ from token 0 on"):
        list(measure(bench, "agreement"))
