"""The batch fills the budget, and its states are full."""

import pytest
import torch
from support.tables import unpadded
from support.tiny_models import tiny_cell
from support.tiny_tokenizer import chat_cell

import msrnn
from msrnn import Cell
from msrnn.cli.main import main
from msrnn.eval.throughput import ThroughputResult, measure_throughput, report

CELL = tiny_cell(dtype=torch.float32)


@pytest.mark.parametrize("reduction", ["window:8", "tova:8", "h2o:8", "full"])
def test_the_batch_fills_the_budget(reduction):
    sequence, batch, held, speed = measure_throughput(CELL, msrnn.parse_reduction(reduction), 100_000, 24, 3)
    rows = 24 if reduction == "full" else 9  # a step stores one row more before it evicts
    numbers = 4 * 8 if reduction == "h2o:8" else 0
    full = 2 * 2 * (rows * (2 * 6 * 4 + 8) + numbers) + 8
    assert sequence == pytest.approx(full, rel=0.1 if reduction == "full" else 0)
    assert batch == 100_000 // sequence
    assert 0.9 * batch * sequence - 8 * batch <= held <= 100_000
    assert speed > 0


def test_the_timed_steps_end_at_the_length(monkeypatch):
    clocks, step = [], Cell.step_

    def timed(self, token, state):
        clocks.append((len(token), int(state.clock[0])))
        return step(self, token, state)

    monkeypatch.setattr(Cell, "step_", timed)
    _, batch, _, _ = measure_throughput(CELL, msrnn.TOVA(8), 50_000, 24, 3)
    assert clocks == [(1, 21), (1, 22), (1, 23), (batch, 21), (batch, 22), (batch, 23)]


def test_a_budget_below_one_sequence_is_refused():
    with pytest.raises(msrnn.Error, match=r"the budget is 100 bytes; expected at least [\d,]+, one sequence under tova:8"):
        measure_throughput(CELL, msrnn.TOVA(8), 100, 24, 3)


def test_throughput_is_relative_to_the_unbounded_state():
    bounded = ThroughputResult("tova", 8, 10**6, 90, 9 * 10**7, 300.0)
    unbounded = ThroughputResult("full", None, 10**7, 9, 9 * 10**7, 100.0)
    rows = report([bounded, unbounded], 90, 64).tables[0].rows
    assert rows[0] == ["tova", "8", "1.00", "90", "90", "300", "3.00"]
    assert rows[1] == ["full", "unbounded", "10.00", "9", "90", "100", "1.00"]


def test_the_reference_is_the_unbounded_state_or_else_the_last_row():
    rows = [ThroughputResult("tova", size, 10**6, 90, 9 * 10**7, speed) for size, speed in ((8, 300.0), (16, 150.0))]
    unbounded = ThroughputResult("full", None, 10**7, 9, 9 * 10**7, 100.0)
    assert [row[-1] for row in report([unbounded, *rows], 90, 64).tables[0].rows] == ["1.00", "3.00", "1.50"]
    assert [row[-1] for row in report(rows, 90, 64).tables[0].rows] == ["2.00", "1.00"]


def test_tokens_of_all_sequences_are_counted_at_the_median_step(monkeypatch):
    """Three steps of the batch take 1, 5 and 2 seconds."""
    times = iter([0.0, 1.0, 1.0, 6.0, 6.0, 8.0])
    monkeypatch.setattr("msrnn.eval.throughput.time.perf_counter", lambda: next(times))
    _, batch, _, speed = measure_throughput(CELL, msrnn.TOVA(8), 50_000, 24, 3)
    assert batch > 1
    assert speed == batch / 2


def test_the_command(tmp_path, capsys):
    chat_cell().save(tmp_path / "model")
    arguments = ["eval", "throughput", str(tmp_path / "model"), "--sizes", "4", "8"]
    arguments += ["--length", "30", "--steps", "2", "--budget", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    first = capsys.readouterr().out
    assert unpadded(first).count("| tova |") == 2
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == first  # nothing is measured again, so the times are equal
    assert main([*arguments, "--device", "cpu:0", "--out", str(tmp_path / "out")]) == 0  # as ranks with a GPU each
    assert capsys.readouterr().out == first
    for more, message in {
        ("--sizes", "28"): "tova:28, which is not full after 28 tokens",
        ("--steps", "30", "--operators", "full"): "--steps is 30",
        ("--budget", "999999999"): "the machine has",
    }.items():
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
