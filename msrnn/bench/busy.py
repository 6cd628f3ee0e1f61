"""A step while other processes use all cores, as on a laptop that is in use or on a shared server."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import mean

import torch

from ..threads import available_cpus, use_idle_cpus
from .baselines.transformers import MISSING, NAME
from .result import Result
from .settings import Bench, repeated
from .step import dtype_name, step_on_full_state
from .timing import Contenders

IDLE = "msrnn, use_idle_cpus"
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


def busy(bench: Bench) -> Iterator[Result]:
    """Compare the mean time of ``step_`` with transformers, both next to one busy process per core.

    The step is measured with the threads of the run and with those of :func:`~msrnn.threads.use_idle_cpus`. transformers has
    the threads of the run. Means instead of medians, because some steps wait much longer than others for a core.
    """
    cell, ids, count, threads = bench.cell(), bench.text(bench.size), available_cpus(), torch.get_num_threads()
    steps = repeated(step_on_full_state(bench, cell), ids)
    with busy_processes(count):
        fewer = use_idle_cpus()
        contenders: Contenders = {"msrnn": partial(_with_threads, threads, steps), IDLE: partial(_with_threads, fewer, steps)}
        if baseline := bench.transformers():
            others = repeated(partial(baseline.step, cache=baseline.read(ids)), ids)
            contenders = {**contenders, NAME: partial(_with_threads, threads, others)}
        spent = bench.step_ms(contenders)
    torch.set_num_threads(threads)
    for name, count_of_threads in (("msrnn", threads), (IDLE, fewer)):
        words = f"mean next to {count} busy processes, {'use_idle_cpus, ' * (name == IDLE)}threads: {count_of_threads}"
        workload = f"step_, {bench.tova}, {dtype_name(cell)}, {words}"
        if not baseline:
            yield Result(workload, "ms/token", mean(spent[name]), target="≤ 1", note=MISSING)
            continue
        ratios = [a / b for a, b in zip(spent[name], spent[NAME], strict=True)]
        yield Result(
            workload,
            "ms/token",
            mean(spent[name]),
            baseline_name=f"{NAME}, step at length {bench.size}, threads: {threads}",
            baseline=mean(spent[NAME]),
            ratio=mean(spent[name]) / mean(spent[NAME]),
            low=min(ratios),
            high=max(ratios),
            target="≤ 1",
        )


def _with_threads(count: int, steps: Callable[[], object]) -> None:
    torch.set_num_threads(count)
    steps()
