"""Commands under torchrun: which of them run over several processes, called ranks, and how the ranks start and end.

Rank 0 prints and writes files. The standard output and error of the other ranks are the null device. Rank 0 also prints the
message of an error on another rank.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from ..distributed.launch import Launch, from_all, start_group
from ..distributed.liveness import STOPPED, Liveness, exit_now
from ..errors import Error

SPLIT = ("generate", "read", "bench", "train", "finetune")
"""Commands that split the model over the ranks."""
DIVIDED = ("eval",)
"""Commands of which every rank computes a part with the whole model."""
FIRST_ONLY = ("info",)
"""Commands that rank 0 runs alone; the other ranks have nothing to do."""
REFUSED = {
    "calibrate": "it reads the queries of all heads, and a rank has some of them",
    "chat": "it reads from a terminal",
    "compare": "it shows the rows of all heads, and a rank has some of them",
    "convert": "it reads and writes files only",
    "lm-eval": "the harness starts processes of its own",
    "retention": "it shows the rows of all heads, and a rank has some of them",
    "soak": "it measures the memory of one process",
    "variants": "it starts processes of its own (--workers)",
    "watch": "it shows the rows of all heads, and a rank has some of them",
}
"""Commands that run in one process only, with the reason."""

DIVIDED_TIMEOUT = timedelta(days=7)
"""Time that a rank that has computed its part waits for the others. A rank that ends is noticed at once, by its connection."""
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Time that a collective of a split model waits for a rank that is alive, for example while it reads its weights."""
LOSS_SECONDS = 2.0
"""Seconds after a failed collective in which the end of another rank is taken for its cause."""


class RankRun:
    """One command on one of several ranks: its start, its output, and its end together with the other ranks."""

    def __init__(self, launch: Launch):
        self.launch, self._liveness = launch, Liveness(launch)
        self.report = self._liveness.report

    def start(self, args: argparse.Namespace) -> bool:
        """Start the process group of a command, and set the device and the threads of this rank.

        Returns:
            False if this rank has nothing to do.

        Raises:
            Error: the command runs in one process only, the ranks cannot reach each other, or the device is not available.
        """
        if args.command in REFUSED:
            found = f"msrnn {args.command} is started by torchrun with {self.launch.size} ranks"
            raise Error(f"{found}; expected one process, because {REFUSED[args.command]}")
        if args.command in FIRST_ONLY:
            return self.launch.is_first
        store = start_group(self.launch, DIVIDED_TIMEOUT if args.command in DIVIDED else COLLECTIVE_TIMEOUT)
        self._liveness.connect(store)
        args.group = dist.group.WORLD if args.command in SPLIT else None
        if "device" in args:  # train has no such option
            args.device = self.launch.device(args.device)
        self.launch.set_threads()
        return True

    def run(self, command: Callable[[], int]) -> int:
        """Call ``command``, which returns an exit code, and return it; a failure ends the process instead."""
        if not self.launch.is_first:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
        try:
            code = command()
            if code == 0 and self._liveness.is_connected:
                from_all(None)  # a rank that ended earlier would close connections that others use
        except SystemExit as end:  # by argparse, or by the signal that ends all ranks
            code = end.code if isinstance(end.code, int) else 1
            self.report(STOPPED if code >= 128 else "", code)
        except BaseException:
            code = 1
            if not self._liveness.wait_for_end(LOSS_SECONDS):
                self.report(f"rank {self.launch.rank}\n{traceback.format_exc()}", code)
        if code:
            self.report("", code)  # for an error without a message, such as a closed output
            exit_now(self._liveness.exit_code or code)  # not that of the signal by which the thread ends the main thread
        self._liveness.finish()
        if self._liveness.is_connected:
            dist.destroy_process_group()
        return 0


@contextmanager
def agreed_interrupt(launch: Launch) -> Iterator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt after ctrl-C, in the same call on every rank. Collective.

    Otherwise the ranks would stop at different tokens, and could not save a state together. In one process ctrl-C raises
    KeyboardInterrupt at once, as usual.
    """
    if launch.size == 1:
        yield lambda: None
        return
    interrupted = torch.zeros(1, dtype=torch.int32)
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.fill_(1))

    def check() -> None:
        anywhere = interrupted.clone()
        dist.all_reduce(anywhere, dist.ReduceOp.MAX)
        if anywhere.item():
            raise KeyboardInterrupt

    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
