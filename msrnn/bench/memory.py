"""Memory: the peak while a text is read, resident memory at two positions, and the bytes of H.

Peaks are measured in worker processes, because the allocator of a process keeps memory that earlier work has freed.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..diagnostics.process_memory import peak_rss_bytes, reset_peak_rss, rss_bytes
from ..diagnostics.state_memory import full_nbytes
from ..state.loading import load_state
from .result import Result, SkipBenchmark, paired
from .settings import STEPS, Bench, in_place_step, repeated
from .timing import synchronize
from .worker import run_in_subprocess

RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Environment in which glibc returns each large block to the system as soon as it is freed. The peak then follows the memory in
use, without fragmentation. This is slower, so glibc keeps freed blocks by default."""


def peak(bench: Bench) -> Iterator[Result]:
    """Compare the peak memory over the parameters while reading a text with that of a text 16 times as short."""
    texts = [bench.text(bench.tokens), bench.text(16 * bench.tokens)]
    for remark, environment in (("", {}), (", freed memory given back", RETURN_FREED_MEMORY)):
        short, long = (run_in_subprocess(bench, _peak, ids, bench.tova, environment=environment) / 1e6 for ids in texts)
        workload = f"peak over the parameters, read {16 * bench.tokens:,} tokens, {bench.tova}{remark}"
        yield paired(workload, "MB", [long], f"read {bench.tokens:,}", [short], "≤ 1.1")


def far_position(bench: Bench) -> Iterator[Result]:
    """Compare a step and the resident memory at a far position with those at a near position."""
    near, far = (max(STEPS, n * bench.tokens // 2048) for n in (1000, 20000))
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("near", "far")]
        resident = run_in_subprocess(bench, _resident, bench.text(far), bench.tova, near, paths)
        cell = bench.cell()
        states = [load_state(path, device=bench.device) for path in paths]
    names = (f"position {near:,}", f"position {far:,}")
    ids = bench.text(bench.size)
    spent = bench.step_ms({name: repeated(in_place_step(cell, H), ids) for name, H in zip(names, states, strict=True)})
    yield paired(f"step_, {bench.tova}, {names[1]}", "ms/token", spent[names[1]], names[0], spent[names[0]], "≤ 1.03")
    near_mb, far_mb = ([x / 1e6] for x in resident)
    yield paired(f"resident memory, {bench.tova}, {names[1]}", "MB", far_mb, names[0], near_mb, "≤ 1.01")


def state_bytes(bench: Bench) -> Iterator[Result]:
    """Compare the bytes of H under each operator with those of an H without evictions."""
    cell, size = bench.cell(), bench.size
    for spec in (bench.tova, f"h2o:{size}", f"window:{size}"):
        state = bench.full_state(cell, spec, bench.tokens)
        workload = f"H after {bench.tokens:,} tokens, {spec}"
        yield paired(workload, "MB", [state.nbytes / 1e6], "full", [full_nbytes(state) / 1e6])


# Run in worker processes.


def _peak(cell: Cell, ids: Tensor, reduction: str) -> int:
    """Return the maximum memory in bytes while ``ids (1, T)`` are read, minus the memory before."""
    cell(ids[:, :8], cell.initial_state(1, reduction), last_only=True)  # allocates what the first call of a process needs
    before = reset_peak(ids.device)
    cell(ids, cell.initial_state(1, reduction), last_only=True)
    return memory_bytes(ids.device, peak=True) - before


def _resident(cell: Cell, ids: Tensor, reduction: str, near: int, paths: list[str]) -> list[int]:
    """Return the bytes in memory after ``near`` tokens and after all ``ids (1, T)``; save both states to ``paths``."""
    state, found = cell.initial_state(1, reduction), []
    for path, some in zip(paths, (ids[:, : near - STEPS], ids[:, near : ids.shape[1] - STEPS]), strict=True):
        _, state = cell(some, state, last_only=True)
        repeated(in_place_step(cell, state), ids)()
        found.append(memory_bytes(ids.device))
        state.save(path)
    return found


def reset_peak(device: torch.device) -> int:
    """Start a new peak and return the bytes in memory now.

    Raises:
        SkipBenchmark: the system has no /proc.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return memory_bytes(device)
    try:
        reset_peak_rss()
    except OSError:
        raise SkipBenchmark("this system has no /proc, from which memory is read") from None
    return memory_bytes(device)


def memory_bytes(device: torch.device, peak: bool = False) -> int:
    """Return the bytes of this process on ``device``: now, or at most since :func:`reset_peak`."""
    if device.type == "cuda":
        synchronize(device)
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device)
    return peak_rss_bytes() if peak else rss_bytes()
