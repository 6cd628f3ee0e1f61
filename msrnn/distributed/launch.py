"""The processes that torchrun has started, and the start of their process group.

``torchrun --nproc-per-node N -m msrnn …`` starts N processes with ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
``LOCAL_WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` in their environment
(https://docs.pytorch.org/docs/stable/elastic/run.html). Any other program that starts processes with these variables works too.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..errors import Error
from ..threads import available_cpus
from .ranks import Ranks

REQUIRED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
START_TIMEOUT = timedelta(minutes=5)
"""Time that a rank waits at the start for the others, which may still import their modules."""


@dataclass(frozen=True)
class Launch:
    """The rank of this process among those of its launch. :class:`.ranks.Ranks` are the ranks of a process group.

    Attributes:
        rank, size: number of this process, from 0, and number of processes.
        local_rank, local_size: the same among the processes of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Launch":
        """Return the launch that the environment describes; one process if it describes none.

        Raises:
            Error: a variable is no integer, is out of range, or is missing although ``WORLD_SIZE`` is above 1.
        """
        if "RANK" not in environment or environment.get("WORLD_SIZE", "1") == "1":
            return cls()
        if missing := [name for name in REQUIRED if name not in environment]:
            raise Error(
                f"the environment has WORLD_SIZE {environment['WORLD_SIZE']} but no {missing[0]}; expected that of torchrun"
            )
        rank, size = _int(environment, "RANK"), _int(environment, "WORLD_SIZE")
        local_rank, local_size = _int(environment, "LOCAL_RANK", rank), _int(environment, "LOCAL_WORLD_SIZE", size)
        if rank >= size or local_rank >= local_size:
            raise Error(f"the environment has RANK {rank} of {size} and LOCAL_RANK {local_rank} of {local_size}; expected less")
        return cls(rank, size, local_rank, local_size)

    @property
    def is_first(self) -> bool:
        """True for rank 0, which prints the output and writes the files."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device of this rank for the value of ``--device``: ``cuda`` is the GPU of its local rank.

        Raises:
            Error: there are several ranks, and ``name`` is another device than ``cpu`` and ``cuda``, such as ``cuda:1``.
        """
        if self.size == 1 or name == "cpu":
            return name
        if name != "cuda":
            raise Error(f"--device is {name!r} for {self.size} ranks; expected cpu, or cuda, of which each rank takes its own")
        return f"cuda:{self.local_rank}"

    def set_threads(self, alone: bool = False) -> None:
        """Divide the CPUs of this machine between its ranks, unless ``OMP_NUM_THREADS`` is above 1, the value of torchrun.

        Args:
            alone: True if one rank computes and the others wait.
        """
        if self.size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
            torch.set_num_threads(max(1, available_cpus() // (1 if alone else self.local_size)))


def start_group(launch: Launch, timeout: timedelta) -> "dist.Store":
    """Start the default process group: gloo for tensors on CPUs, and NCCL for those on GPUs if there are any.

    Args:
        launch: the ranks, as the environment describes them.
        timeout: how long a collective waits for a rank that is alive.

    Returns:
        The key-value store of the group.

    Raises:
        Error: the ranks cannot reach each other.
    """
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=START_TIMEOUT))
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise Error(
            f"the {launch.size} ranks do not reach each other at {address} ({str(error).splitlines()[0]:.200})"
        ) from None
    return store


def from_first(value: Any) -> Any:
    """Return the ``value`` of rank 0, a JSON value, on every rank. Collective; values of other ranks are not used."""
    ranks = Ranks.of()
    return ranks.exchange(None if ranks.rank else value, "values")[0]


def from_all(value: Any) -> list[Any]:
    """Return the ``value`` of every rank, a JSON value, in the order of the ranks. Collective."""
    return Ranks.of().exchange(value, "values")


def check_same_on_all(settings: Mapping[str, Any]) -> None:
    """Refuse settings, JSON values, that are not the same on every rank. Collective.

    Raises:
        Error: a setting of this rank differs from that of rank 0.
    """
    own = json.loads(json.dumps(dict(settings)))
    for name, value in from_first(own).items():
        if own[name] != value:
            found = f"{own[name]!r:.60} on rank {dist.get_rank()} and {value!r:.60} on rank 0"
            raise Error(f"{name} is {found}; expected the same on every rank")


def _int(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    text = environment.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Error(f"the environment has {name} {text!r:.60}; expected a number that torchrun sets")
    return int(text)
