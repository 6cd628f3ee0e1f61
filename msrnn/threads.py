"""The CPUs that this process may use, those of them that are idle, and the number of threads of PyTorch.

A step on a CPU has hundreds of parallel regions. Each waits for its last thread. If other processes use all CPUs, two threads
take several times as long as one (docs/bench.md, "Busy machines").
"""

import os
import time
from pathlib import Path

import torch

CPU_TIMES = Path("/proc/stat")
IDLE = (3, 4)
"""Positions of the idle times in a line of ``/proc/stat``: idle, and waiting for input or output (proc_stat(5))."""


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_cpus(seconds: float = 0.2) -> float | None:
    """Return how many of the available CPUs are idle, as a mean over ``seconds``, in which this thread sleeps.

    Returns:
        A number from 0 to :func:`available_cpus`; None on systems without ``/proc/stat``. A thread of this process that
        computes at the same time counts as work of another process.
    """
    before = _cpu_times()
    time.sleep(seconds)
    after = _cpu_times()
    pairs = [(before[name], after[name]) for name in before.keys() & after.keys()]
    if not pairs:
        return None
    return sum(_idle_share([new - old for old, new in zip(*pair, strict=False)]) for pair in pairs)


def use_idle_cpus(seconds: float = 0.2) -> int:
    """Reduce the number of threads of PyTorch to the number of idle CPUs, at least 1, and return it.

    Call it once before a loop of steps. Results of two numbers of threads can differ by rounding. Nothing changes if the
    environment has ``OMP_NUM_THREADS``, or if the system does not tell which CPUs are idle.

    Args:
        seconds: time of the measurement, see :func:`idle_cpus`.
    """
    threads = torch.get_num_threads()
    if threads > 1 and "OMP_NUM_THREADS" not in os.environ:
        idle = idle_cpus(seconds)
        if idle is not None and round(idle) < threads:
            threads = max(1, round(idle))
            torch.set_num_threads(threads)
    return threads


def _cpu_times() -> dict[str, list[int]]:
    """Return the fields of every available CPU in ``/proc/stat``; empty if there is no such file."""
    try:
        lines = [line.split() for line in CPU_TIMES.read_text().splitlines()]
    except OSError:
        return {}
    allowed = {f"cpu{n}" for n in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    return {name: list(map(int, fields)) for name, *fields in lines if name in allowed}


def _idle_share(fields: list[int]) -> float:
    """Return the idle part of the times that passed; guests are part of user time, so the last two fields are not counted."""
    total = sum(fields[:8])
    return sum(fields[i] for i in IDLE) / total if total else 1.0
