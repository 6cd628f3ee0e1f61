"""The idle CPUs, read from a file in the format of /proc/stat, decide the number of threads."""

import os

import pytest
import torch

import msrnn
from msrnn import threads
from msrnn.threads import available_cpus, cpu_quota, idle_cpus, use_idle_cpus

START = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 50 300 10 0 5 0 7 0\ncpu1 200 3 60 400 0 1 0 9 0 0\nintr 5 6\n"


@pytest.fixture
def cpu_times(tmp_path, monkeypatch):
    """Return a function that sets the later content of the file; this process may use CPU 0 and CPU 1."""
    path, later = tmp_path / "stat", []
    path.write_text(START)
    monkeypatch.setattr(threads, "CPU_TIMES", path)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
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
        ("120 0 50 300 4 0 5 0 7 0", "220 3 60 400 0 1 0 9 0 0", 0.0),  # the time of waiting for a disk has decreased
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


@pytest.mark.parametrize("text", [None, "", "cpu0 1 2 3 4\ncpu1 1 2 3 4\n", "cpu0 1 2 3 4 x\n", "cpu0 \xff\n"])
def test_a_system_without_such_a_file_keeps_its_threads(text, tmp_path, monkeypatch, four_threads):
    path = tmp_path / "stat"
    monkeypatch.setattr(threads, "CPU_TIMES", path)
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    if text is not None:
        path.write_text(text, encoding="latin-1")
    assert idle_cpus(0.001) is None
    assert use_idle_cpus(0.001) == 4 == torch.get_num_threads()


@pytest.mark.parametrize(
    ("files", "quota", "expected"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0, 2),
        ({"cpu.max": "50000 100000\n"}, 0.5, 1),
        ({"cpu.max": "1600000 100000\n"}, 16.0, 3),
        ({"cpu.max": "max 100000\n"}, None, 3),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 3.0, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None, 3),
        ({"cpu/cpu.cfs_quota_us": "100000\n"}, None, 3),
        ({"cpu.max": "one two three\n"}, None, 3),
    ],
)
def test_the_quota_of_a_container_counts(files, quota, expected, tmp_path, monkeypatch, four_threads):
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    monkeypatch.setattr(threads, "idle_cpus", lambda seconds: 3.0)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota() == quota
    assert use_idle_cpus() == expected == torch.get_num_threads()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", None])
def test_a_time_that_is_not_positive_is_refused(seconds):
    for call in (idle_cpus, use_idle_cpus):
        with pytest.raises(msrnn.Error, match=r"seconds is .*; expected a number above 0"):
            call(seconds)


@pytest.mark.skipif(not threads.CPU_TIMES.exists(), reason="the system has no /proc/stat")
def test_the_real_file_is_read():
    assert 0 <= idle_cpus(0.05) <= available_cpus()
