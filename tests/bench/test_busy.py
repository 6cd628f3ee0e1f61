"""Busy processes: they use the cores, and they end with the section, with ctrl-C and with the benchmark."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support.benchmarks import set_times
from support.command_line import PATIENCE

from msrnn.bench import busy
from msrnn.bench.settings import STEPS


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11])


def test_processes_use_cpu_time_until_the_end():
    with busy.busy_processes(2) as pids:
        wait_until(lambda: all(cpu_ticks(pid) >= 5 for pid in pids))
        assert all(os.getsid(pid) != os.getsid(0) for pid in pids)
    assert not any(map(is_alive, pids))


def test_processes_end_after_an_exception():
    with pytest.raises(KeyboardInterrupt), busy.busy_processes(1) as pids:
        raise KeyboardInterrupt
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_when_the_benchmark_is_killed(number):
    code = "import time; from msrnn.bench.busy import busy_processes\nwith busy_processes(2) as pids:\n"
    code += " print(*pids, flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=Path(__file__).parents[2]
    ) as parent:
        pids = list(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2
        parent.send_signal(number)
        parent.communicate(timeout=PATIENCE)
    wait_until(lambda: not any(map(is_alive, pids)))


def test_one_process_per_core_runs_while_steps_are_timed(monkeypatch, bench):
    counts = []
    monkeypatch.setattr(busy, "available_cpus", lambda: 3)
    real = busy.busy_processes
    monkeypatch.setattr(busy, "busy_processes", lambda count: counts.append(count) or real(0))
    set_times(monkeypatch, a=[STEPS * 0.1, STEPS * 0.5], b=[STEPS * 0.1, STEPS * 0.2], c=[STEPS * 0.2, STEPS * 0.2])
    row, fewer = busy.busy(bench)
    assert counts == [3]
    assert "mean next to 3 busy processes" in row.workload
    assert (row.value, row.baseline, row.ratio) == pytest.approx((300, 200, 1.5))  # means
    assert (row.low, row.high) == pytest.approx((0.5, 2.5))
    assert row.reached is False
    assert (fewer.value, fewer.baseline, fewer.ratio) == pytest.approx((150, 200, 0.75))
    assert fewer.reached is True


def test_each_implementation_has_its_number_of_threads(monkeypatch, bench):
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(busy, "use_idle_cpus", lambda: before + 2)
    monkeypatch.setattr(busy, "busy_processes", lambda count: nullcontext())
    monkeypatch.setattr(busy, "step_on_full_state", lambda bench, cell: lambda token: used.append(torch.get_num_threads()))
    monkeypatch.setattr(type(bench), "transformers", lambda self: None)
    rows = list(busy.busy(bench))
    assert set(used) == {before, before + 2}
    assert [row.workload[-1] for row in rows] == [str(before), str(before + 2)]
    assert torch.get_num_threads() == before
