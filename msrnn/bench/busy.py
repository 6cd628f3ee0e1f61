"""A step while other processes use all cores, as on a laptop that is in use or on a shared server."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import mean

from .baselines.transformers import MISSING, NAME
from .result import Result
from .settings import Bench, repeated
from .step import dtype_name, step_on_full_state
from .timing import Contenders

LOOP = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(10**6): pass
"""
"""A program that uses one core until its parent has ended. It ends by itself if the benchmark is killed."""


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Run ``count`` processes that use one core each, and yield their process ids; the processes are killed at the end.

    They have their own sessions, so ctrl-C in the terminal does not reach them.
    """
    with ExitStack() as stack:
        processes = []
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-S", "-c", LOOP, str(os.getpid())], start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process.pid)
        yield processes


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy(bench: Bench) -> Iterator[Result]:
    """Compare the mean time of ``step_`` with transformers, both next to one busy process per core.

    Means instead of medians, because some steps wait much longer than others for a core.
    """
    cell, ids, count = bench.cell(), bench.text(bench.size), n_cores()
    contenders: Contenders = {"msrnn": repeated(step_on_full_state(bench, cell), ids)}
    if baseline := bench.transformers():
        contenders = {**contenders, NAME: repeated(partial(baseline.step, cache=baseline.read(ids)), ids)}
    with busy_processes(count):
        spent = bench.step_ms(contenders)
    workload = f"step_, {bench.tova}, {dtype_name(cell)}, mean next to {count} busy processes"
    value = mean(spent["msrnn"])
    if not baseline:
        yield Result(workload, "ms/token", value, target="≤ 1", note=MISSING)
        return
    ratios = [a / b for a, b in zip(spent["msrnn"], spent[NAME], strict=True)]
    yield Result(
        workload,
        "ms/token",
        value,
        baseline_name=f"{NAME}, step at length {bench.size}",
        baseline=mean(spent[NAME]),
        ratio=value / mean(spent[NAME]),
        low=min(ratios),
        high=max(ratios),
        target="≤ 1",
    )
