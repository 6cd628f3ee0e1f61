"""Bytes: what a long text takes beside a short one, each in a process of its own since a peak never goes down; and H itself."""

import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cell import Cell
from ..compare import full_nbytes
from ..snapshot import load_state
from ..state import State
from .context import BLOCK, Bench, block_of
from .row import Row, Unmeasured, paired
from .timing import wait

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(bench: Bench) -> Iterator[Row]:
    """The most that reading takes over the parameters, of a text 16 times as long."""
    found = []
    for tokens in (bench.tokens, 16 * bench.tokens):
        found.append(_in_a_process(bench, _peak, bench.text(tokens), bench.tova) / 1e6)
    work = f"peak over the parameters, read {16 * bench.tokens:,} tokens, {bench.tova}"
    yield paired(work, "MB", found[1:], f"read {bench.tokens:,}", found[:1], "≤ 1.1")


def far(bench: Bench) -> Iterator[Row]:
    """A bounded state far into a text beside itself near its beginning."""
    near, far = (n * bench.tokens // 2048 for n in (1000, 20000))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("near", "far")]
        resident = _in_a_process(bench, _resident, bench.text(far), bench.tova, near, paths)
        cell = bench.cell()
        states = [load_state(path, device=bench.device) for path in paths]
    names = (f"position {near:,}", f"position {far:,}")

    def moving(state: State) -> Callable[[Tensor], Any]:
        return lambda token: cell.step_(token, state)

    spent = bench.step_ms(
        {name: block_of(moving(state), bench.text(bench.size)) for name, state in zip(names, states, strict=True)}
    )
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
    before = _reset(ids.device)
    cell(ids, cell.initial_state(1, form), last_only=True)
    return _bytes("VmHWM", ids.device) - before


def _resident(cell: Cell, ids: Tensor, form: str, near: int, paths: list[Path]) -> list[int]:
    """Bytes after ``near`` tokens and a block of steps, and after all of ``ids (1, T)`` and a block; both states are saved."""
    state, found = cell.initial_state(1, form), []
    for path, some in zip(paths, (ids[:, : near - BLOCK], ids[:, near : ids.shape[1] - BLOCK]), strict=True):
        _, state = cell(some, state, last_only=True)
        steps = block_of(partial(_move, cell, state), ids)
        steps()
        found.append(_bytes("VmRSS", ids.device))
        state.save(path)
    return found


def _move(cell: Cell, state: State, token: Tensor) -> None:
    cell.step_(token, state)


def _reset(device: torch.device) -> int:
    """Let the peak begin anew; the bytes there are now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        RESET.write_text("5")
    return _bytes("VmRSS", device)


def _bytes(name: str, device: torch.device) -> int:
    """``VmRSS``, what is resident now, or ``VmHWM``, the most there was."""
    if device.type == "cuda":
        wait(device)
        read = torch.cuda.memory_allocated if name == "VmRSS" else torch.cuda.max_memory_allocated
        return read(device)
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


# The other process.


def _in_a_process(bench: Bench, measure: Callable[..., Any], ids: Tensor, *args: Any) -> Any:
    """``measure(cell, ids, …)`` in a new process with as many threads.

    Raises:
        Unmeasured: no /proc to look at, or it came to grief.
    """
    if bench.device.type != "cuda" and not (STATUS.exists() and RESET.exists()):
        raise Unmeasured("the peak of a process is read from /proc, as Linux has it")
    ours, its = multiprocessing.Pipe(duplex=False)
    facts = (bench.load, bench.dtype, torch.get_num_threads(), measure, ids.tolist(), bench.device, args)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(its, *facts), daemon=True)
    with _deaf():
        process.start()
    its.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        found = Unmeasured(f"the process that measured ended with code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        ours.close()
    if isinstance(found, Unmeasured):
        raise found
    return found


@contextmanager
def _deaf() -> Iterator[None]:
    """A process started inside takes no ctrl-C: that is for us, and we end it. Meanwhile one has to wait."""
    if os.name != "posix":
        yield
        return
    resource_tracker.ensure_running()  # or its own start would open our ears again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    answer: Any,
    load: Callable[..., Cell],
    dtype: torch.dtype,
    threads: int,
    measure: Callable[..., Any],
    ids: list[list[int]],
    device: torch.device,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            answer.send(measure(load(dtype=dtype), torch.tensor(ids, device=device), *args))
    except Exception as wrong:
        answer.send(Unmeasured(f"{type(wrong).__name__}: {str(wrong).splitlines()[0] if str(wrong) else ''}"))
