"""Worker processes: what they measure, their environment, and their failures."""

import os
import signal

import pytest
import torch

from msrnn.bench.memory import memory_bytes, reset_peak
from msrnn.bench.result import SkipBenchmark
from msrnn.bench.worker import run_in_subprocess


def peak(cell, ids, before, during):
    """Allocate ``before`` bytes, and ``during`` bytes while the peak is measured."""
    torch.ones(before // 4).sum()
    start = reset_peak(ids.device)
    torch.ones(during // 4).sum()
    return memory_bytes(ids.device, peak=True) - start, torch.get_num_threads()


def session(*_):
    return os.getsid(0)


def environment(*_):
    return os.environ.get("MSRNN_TEST")


def printing(*_):
    print("printed by a library")
    return "the answer"


def failing(cell, ids, how):
    if how == "skip":
        raise SkipBenchmark("no reason")
    if how == "raise":
        raise OSError("no such thing")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(7)


def test_peak_contains_only_the_measured_work(bench, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    found, threads = run_in_subprocess(bench, peak, bench.text(1), 300_000_000, 60_000_000)
    assert 0.9 < found / 60_000_000 < 1.1
    assert threads == 3


def test_environment_is_added_in_the_worker_only(bench, monkeypatch):
    monkeypatch.delenv("MSRNN_TEST", raising=False)
    assert run_in_subprocess(bench, environment, bench.text(1), environment={"MSRNN_TEST": "yes"}) == "yes"
    assert "MSRNN_TEST" not in os.environ


def test_worker_has_its_own_session_so_ctrl_c_does_not_reach_it(bench):
    assert run_in_subprocess(bench, session, bench.text(1)) != os.getsid(0)


def test_prints_are_not_answers(bench):
    assert run_in_subprocess(bench, printing, bench.text(1)) == "the answer"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("skip", "no reason"),
        ("raise", "OSError: no such thing"),
        ("exit", "the process ended with code 7"),
        ("kill", "the process ended with code -9"),
    ],
)
def test_failure_of_the_worker_is_the_reason(how, reason, bench):
    with pytest.raises(SkipBenchmark, match=f"^{reason}$"):
        run_in_subprocess(bench, failing, bench.text(1), how)
