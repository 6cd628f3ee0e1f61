"""What has to be measured in a process of its own, as its peak never goes down."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import resource_tracker
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..cell.cell import Cell
from .result import Unmeasured
from .settings import Bench


def apart(
    bench: Bench, measure: Callable[..., Any], ids: Tensor, *args: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """``measure(cell, ids, …)`` in a new process with as many threads, and more in its ``environment``.

    Raises:
        Unmeasured: it came to grief.
    """
    ours, its = multiprocessing.Pipe(duplex=False)
    facts = (bench.load, bench.dtype, torch.get_num_threads(), measure, ids.tolist(), bench.device, args)
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(its, *facts), daemon=True)
    with _deaf(), _told(environment or {}):
        process.start()
    its.close()
    try:
        found = ours.recv()
    except EOFError:
        process.join()
        found = Unmeasured(f"the process that measured ended with code {process.exitcode}")
    except BaseException:
        process.kill()
        raise
    finally:
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
    heard: list[int] = []  # by another thread of ours, which makes this one stop
    handler = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    resource_tracker.ensure_running()  # or its own start would open our ears again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _told(environment: Mapping[str, str]) -> Iterator[None]:
    """A process started inside finds more in its environment."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


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
    tqdm.set_lock(RLock())  # its own would be a semaphore, missed aloud when this process is killed
    try:
        with torch.no_grad():
            answer.send(measure(load(dtype=dtype), torch.tensor(ids, device=device), *args))
    except Unmeasured as reason:
        answer.send(reason)
    except Exception as wrong:
        answer.send(Unmeasured(f"{type(wrong).__name__}: {str(wrong).splitlines()[0] if str(wrong) else ''}"))
