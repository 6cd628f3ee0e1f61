"""Bytes: what a long text takes beside a short one, each in a process of its own since a peak never goes down; and H itself."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..diagnostics.comparison import full_nbytes
from ..state.serialization import load_state
from .result import Row, Unmeasured, paired
from .settings import BLOCK, Bench, block_of, moving
from .timing import wait
from .worker import apart

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
"""Lets glibc give every large piece of memory back once it is freed: it grows as the pieces in use do, not with holes between
them. Slower; a process that is not told so keeps them to use them again."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(bench: Bench) -> Iterator[Row]:
    """The most that reading takes over the parameters, of a text 16 times as long."""
    texts = [bench.text(bench.tokens), bench.text(16 * bench.tokens)]
    for more, environment in (("", {}), (", freed memory given back", GIVEN_BACK)):
        found = [apart(bench, _peak, ids, bench.tova, environment=environment) / 1e6 for ids in texts]
        work = f"peak over the parameters, read {16 * bench.tokens:,} tokens, {bench.tova}{more}"
        yield paired(work, "MB", found[1:], f"read {bench.tokens:,}", found[:1], "≤ 1.1")


def far(bench: Bench) -> Iterator[Row]:
    """A bounded state far into a text beside itself near its beginning."""
    near, far = (max(BLOCK, n * bench.tokens // 2048) for n in (1000, 20000))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("near", "far")]
        resident = apart(bench, _resident, bench.text(far), bench.tova, near, paths)
        cell = bench.cell()
        states = [load_state(path, device=bench.device) for path in paths]
    names = (f"position {near:,}", f"position {far:,}")

    ids = bench.text(bench.size)
    spent = bench.step_ms({name: block_of(moving(cell, H), ids) for name, H in zip(names, states, strict=True)})
    yield paired(f"step_, {bench.tova}, {names[1]}", "ms/token", spent[names[1]], names[0], spent[names[0]], "≤ 1.03")
    one, other = ([x / 1e6] for x in resident)
    yield paired(f"resident memory, {bench.tova}, {names[1]}", "MB", other, names[0], one, "≤ 1.01")


def held(bench: Bench) -> Iterator[Row]:
    """The bytes of H under each operator beside those of an H that nothing leaves."""
    cell, size = bench.cell(), bench.size
    for form in (bench.tova, f"h2o:{size}", f"window:{size}"):
        state = bench.full(cell, form, bench.tokens)
        work = f"H after {bench.tokens:,} tokens, {form}"
        yield paired(work, "MB", [state.nbytes / 1e6], "full", [full_nbytes(state) / 1e6])


# What the other process does.


def _peak(cell: Cell, ids: Tensor, form: str) -> int:
    """Bytes at most while ``ids (1, T)`` are read, over those before."""
    cell(ids[:, :8], cell.initial_state(1, form), last_only=True)  # what is made once is made
    before = reset_peak(ids.device)
    cell(ids, cell.initial_state(1, form), last_only=True)
    return now("VmHWM", ids.device) - before


def _resident(cell: Cell, ids: Tensor, form: str, near: int, paths: list[Path]) -> list[int]:
    """Bytes after ``near`` tokens and a block of steps, and after all of ``ids (1, T)`` and a block; both states are saved."""
    state, found = cell.initial_state(1, form), []
    for path, some in zip(paths, (ids[:, : near - BLOCK], ids[:, near : ids.shape[1] - BLOCK]), strict=True):
        _, state = cell(some, state, last_only=True)
        block_of(moving(cell, state), ids)()
        found.append(now("VmRSS", ids.device))
        state.save(path)
    return found


def reset_peak(device: torch.device) -> int:
    """Let the peak begin anew; the bytes there are now.

    Raises:
        Unmeasured: no /proc to ask.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        RESET.write_text("5")
    return now("VmRSS", device)


def now(name: str, device: torch.device) -> int:
    """``VmRSS``, what is resident now, or ``VmHWM``, the most there was.

    Raises:
        Unmeasured: no /proc to ask.
    """
    if device.type == "cuda":
        wait(device)
        read = torch.cuda.memory_allocated if name == "VmRSS" else torch.cuda.max_memory_allocated
        return read(device)
    if not (STATUS.exists() and RESET.exists()):
        raise Unmeasured("what a process holds is read from /proc, as Linux has it")
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
