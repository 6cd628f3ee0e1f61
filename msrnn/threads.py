"""The CPUs that this process may use, those of them that are idle, and the number of threads of PyTorch.

A step on a CPU has hundreds of parallel regions. Each waits for its last thread. If other processes use all CPUs, two threads
take several times as long as one (docs/bench.md, "Busy machines").
"""

import os
import time
from pathlib import Path

import torch

from .errors import check_number

CPU_TIMES = Path("/proc/stat")
IDLE = (3, 4)
"""Positions of the idle times in a line of ``/proc/stat``: idle, and waiting for input or output (proc_stat(5))."""
CPU_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Files with the quota and the period of a container, in µs: of version 2 and of version 1 of cgroups."""
CGROUP = Path("/sys/fs/cgroup")


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_cpus(seconds: float = 0.2) -> float | None:
    """Return how many of the available CPUs are idle, as a mean over ``seconds``, in which this thread sleeps.

    Returns:
        A number from 0 to :func:`available_cpus`; None on systems without ``/proc/stat``, or if it has another format. A
        thread of this process that computes at the same time counts as work of another process.

    Raises:
        Error: ``seconds`` is no positive number.
    """
    check_number("seconds", seconds, above=0, at_most=3600)
    before = _cpu_times()
    time.sleep(seconds)
    after = _cpu_times()
    pairs = [(before[name], after[name]) for name in before.keys() & after.keys()]
    if not pairs:
        return None
    return sum(_idle_share([new - old for old, new in zip(*pair, strict=False)]) for pair in pairs)


def cpu_quota() -> float | None:
    """Return how many CPUs the quota of this container allows (``docker run --cpus``); None without a quota."""
    for names in CPU_QUOTAS:
        try:
            quota, period = (int(word) for name in names for word in (CGROUP / name).read_text().split())
        except (OSError, ValueError):  # no such file; the word max is no quota
            continue
        if quota > 0 and period > 0:  # -1 is no quota
            return quota / period
    return None


def use_idle_cpus(seconds: float = 0.2) -> int:
    """Reduce the number of threads of PyTorch to the number of idle CPUs, at least 1, and return it.

    The quota of a container counts too. Call it once before a loop of steps, in the thread that runs the loop. Results of two
    numbers of threads can differ by rounding. Nothing changes if the environment has ``OMP_NUM_THREADS``, or if the system
    shows neither which CPUs are idle nor a quota.

    Args:
        seconds: time of the measurement, see :func:`idle_cpus`.

    Raises:
        Error: ``seconds`` is no positive number.
    """
    check_number("seconds", seconds, above=0, at_most=3600)
    threads = torch.get_num_threads()
    if threads > 1 and "OMP_NUM_THREADS" not in os.environ:
        usable = [x for x in (idle_cpus(seconds), cpu_quota()) if x is not None]
        fewer = max(1, round(min(usable, default=threads)))
        if fewer < threads:
            threads = fewer
            torch.set_num_threads(threads)
    return threads


def _cpu_times() -> dict[str, list[int]]:
    """Return the fields of every available CPU in ``/proc/stat``; empty if there is no such file, or fields are missing."""
    allowed = {f"cpu{n}" for n in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    try:
        lines = [line.split() for line in CPU_TIMES.read_text().splitlines() if line.partition(" ")[0] in allowed]
        times = {name: list(map(int, fields)) for name, *fields in lines}
    except (OSError, ValueError):
        return {}
    return times if all(len(fields) > max(IDLE) for fields in times.values()) else {}


def _idle_share(fields: list[int]) -> float:
    """Return the idle part of the times that passed; guests are part of user time, so the last two fields are not counted."""
    passed = [max(0, x) for x in fields[:8]]  # the time of waiting for input or output can decrease
    return sum(passed[i] for i in IDLE) / sum(passed) if any(passed) else 1.0
