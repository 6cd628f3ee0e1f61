"""Several processes of one group on this machine, with gloo."""

import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

PRELOADED = ["converters", "support.split_cells", "support.tiny_families"]
"""Modules that are imported once for the processes of all tests."""


def run_ranks(size: int, call: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Return what ``call(rank, folder, *arguments)`` returns in each of ``size`` processes of a group.

    ``call`` is a function of a module, and its result is small. ``folder`` is empty.
    """
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    multiprocessing.start_processes(_run, (size, call, folder, arguments), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"result-{rank}", weights_only=False) for rank in range(size)]


def _run(rank: int, size: int, call: Callable[..., Any], folder: Path, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    address, timeout = f"file://{folder / 'rendezvous'}", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size, timeout=timeout)
    try:
        torch.save(call(rank, folder, *arguments), folder / f"result-{rank}")
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
