"""The idle CPUs, read from a file in the format of /proc/stat, decide the number of threads."""

import os

import pytest
import torch

from msrnn import threads
from msrnn.threads import available_cpus, idle_cpus, use_idle_cpus

START = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 50 300 10 0 5 0 7 0\ncpu1 200 3 60 400 0 1 0 9 0 0\nintr 5 6\n"


@pytest.fixture
def cpu_times(tmp_path, monkeypatch):
    """Return a function that sets the later content of the file; this process may use CPU 0 and CPU 1."""
    path, later = tmp_path / "stat", []
    path.write_text(START)
    monkeypatch.setattr(threads, "CPU_TIMES", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: path.write_text(later[0]))
    return later.append


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cpu0", "cpu1", "idle"),
    [
        ("120 0 50 300 10 0 5 0 7 0", "220 3 60 400 0 1 0 9 0 0", 0.0),  # both busy for 20 ticks
        ("100 0 50 315 15 0 5 0 7 0", "200 3 60 420 0 1 0 9 0 0", 2.0),  # idle, or waiting for a disk
        ("110 0 50 310 10 0 5 0 17 0", "200 3 60 405 0 1 0 24 0 0", 0.75),  # half busy; 15 of 20 ticks stolen
        ("100 0 50 300 10 0 5 0 7 0", "220 3 60 400 0 1 0 9 0 0", 1.0),  # no tick of CPU 0
    ],
)
def test_idle_cpus_are_the_sum_of_the_idle_shares(cpu0, cpu1, idle, cpu_times):
    cpu_times(f"cpu  1 1 1 1 1 1 1 1 1 1\ncpu0 {cpu0}\ncpu1 {cpu1}\ncpu2 0 0 0 9999 0 0 0 0 0 0\n")
    assert idle_cpus() == pytest.approx(idle)


@pytest.mark.parametrize(("busy0", "busy1", "expected"), [(20, 20, 1), (20, 0, 1), (8, 0, 2), (0, 0, 2)])
def test_the_number_of_threads_is_that_of_the_idle_cpus_and_at_least_1(busy0, busy1, expected, cpu_times, four_threads):
    rows = [f"cpu0 {100 + busy0} 0 50 {320 - busy0} 10 0 5 0 7 0", f"cpu1 {200 + busy1} 3 60 {420 - busy1} 0 1 0 9 0 0"]
    cpu_times("\n".join(rows))
    assert use_idle_cpus() == expected == torch.get_num_threads()


def test_more_idle_cpus_than_threads_change_nothing(monkeypatch, four_threads):
    monkeypatch.setattr(threads, "idle_cpus", lambda seconds: 16.0)
    assert use_idle_cpus() == 4 == torch.get_num_threads()


def test_omp_num_threads_is_kept(monkeypatch, four_threads):
    monkeypatch.setattr(threads, "idle_cpus", lambda seconds: 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert use_idle_cpus() == 4 == torch.get_num_threads()


def test_a_system_without_the_file_keeps_its_threads(tmp_path, monkeypatch, four_threads):
    monkeypatch.setattr(threads, "CPU_TIMES", tmp_path / "stat")
    assert idle_cpus(0) is None
    assert use_idle_cpus(0) == 4 == torch.get_num_threads()


@pytest.mark.skipif(not threads.CPU_TIMES.exists(), reason="the system has no /proc/stat")
def test_the_real_file_is_read():
    assert 0 <= idle_cpus(0.05) <= available_cpus()
