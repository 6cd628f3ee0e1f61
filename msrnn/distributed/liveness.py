"""End all ranks soon after one of them has ended: by an error, by ctrl-C, or because it was killed.

Every rank has a connection to rank 0. The system closes it when the process ends in any way, so no time limit decides whether a
rank is alive. A thread waits for messages and for closed connections. Without it, only these would end a run:

- A collective fails when a rank that takes part in it is killed. A rank that computes alone does not notice.
- torchrun sends SIGTERM to the other ranks of its own machine, and SIGKILL 30 s later. Python does not handle SIGTERM before a
  collective has returned. Ranks of other machines go on. If torchrun itself is killed, nothing ends its ranks.

The thread also lets rank 0 print one message for an error that all ranks may have.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from types import FrameType
from typing import Any

import torch.distributed as dist

from ..startup import PARENT
from .connections import connect
from .launch import Launch

GRACE, INTERRUPT_GRACE = 4.0, 8.0
"""Seconds in which the main thread may remove its temporary files, before the process ends; after ctrl-C it may also save."""
INTERVAL = 0.5
"""Seconds between two checks of the deadline and of the parent process."""
LOST = "msrnn: rank {rank} has ended without a message (killed, or out of memory); the other ranks end too"
ORPHANED = "msrnn: torchrun has ended; the ranks end too"
STOPPED = "\nstopped"


class Liveness:
    """The connections between the ranks of one run, and the thread that waits on them, on signals, and for torchrun to end.

    Args:
        launch: of this run.
    """

    def __init__(self, launch: Launch):
        self._launch, self._peers = launch, dict[int, socket.socket]()
        self._finished = set[int]()  # ranks that may close their connection
        self._received = defaultdict[int, bytes](bytes)  # by rank, the start of a line
        self._first_reason, self._send_lock, self._ends = threading.Lock(), threading.Lock(), threading.Event()
        self._code, self._deadline = 0, float("inf")
        self._parent = PARENT if "TORCHELASTIC_RUN_ID" in os.environ else None
        self._signals, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)  # works within a collective too
        signal.signal(signal.SIGTERM, _raise_exit)
        threading.Thread(target=self._watch, name="liveness", daemon=True).start()

    def connect(self, store: dist.Store) -> None:
        """Connect to the other ranks. Before this, only signals and the end of torchrun are noticed.

        Args:
            store: the store of their group, for the address of rank 0.

        Raises:
            Error: rank 0 cannot be reached.
        """
        self._peers = connect(self._launch, store)

    @property
    def is_connected(self) -> bool:
        """True after :meth:`connect`."""
        return bool(self._peers)

    @property
    def exit_code(self) -> int:
        """The exit code of the first reason to end; 0 before there is one."""
        return self._code

    def finish(self) -> None:
        """Announce that this rank has finished its work, so that its connections may close."""
        self._claim(0)
        self._send({"finished": True})

    def report(self, message: str, code: int) -> None:
        """Print ``message`` once for all ranks, and let them end with exit code ``code``.

        Nothing is printed if another error came first: most likely it was the same one on another rank, or its result. Ranks
        that are not connected yet have the same error, and rank 0 prints it.
        """
        if not self._claim(code):
            return
        if self._launch.is_first:
            self._announce(message, code)
        elif self._peers:
            self._send({"message": message, "code": code})
            time.sleep(GRACE)  # rank 0 prints the message and ends this process; SystemExit interrupts the sleep

    def wait_for_end(self, seconds: float) -> bool:
        """Return True if within ``seconds`` the thread finds that another rank has ended."""
        return self._ends.wait(seconds)

    def _claim(self, code: int) -> bool:
        """Set the exit code and return True for the first reason to end; the later ones are its results."""
        if not self._first_reason.acquire(blocking=False):  # it is never released
            return False
        self._code = code
        self._ends.set()
        return True

    def _end_all(self, message: str, code: int, printer: int = 0) -> None:
        if self._claim(code):
            self._announce(message, code, printer)
            self._end_main_thread()

    def _announce(self, message: str, code: int, printer: int = 0) -> None:
        """Print ``message`` if this is rank ``printer``, and let rank 0 tell the others to end."""
        if message and self._launch.rank == printer:
            with suppress(OSError, ValueError):
                print(message, file=sys.__stderr__, flush=True)
        if self._launch.is_first:
            self._send({"end": code})

    def _send(self, message: dict[str, Any]) -> None:
        with self._send_lock:
            for peer in self._peers.values():
                with suppress(OSError):  # that rank has ended
                    peer.sendall(json.dumps(message).encode() + b"\n")

    def _watch(self) -> None:
        while time.monotonic() < self._deadline:
            sockets = {peer: rank for rank, peer in self._peers.items() if rank not in self._finished}
            for one in select.select([self._signals, *sockets], [], [], INTERVAL)[0]:
                if one is not self._signals:
                    self._receive(sockets[one])
                elif (number := self._signals.recv(1)[0]) in (signal.SIGINT, signal.SIGTERM):
                    grace = INTERRUPT_GRACE if number == signal.SIGINT else GRACE
                    self._deadline = min(self._deadline, time.monotonic() + grace)
            if self._parent not in (None, os.getppid()):
                self._end_all(ORPHANED, 1)
        if self._claim(128 + signal.SIGINT):
            self._announce(STOPPED, 128 + signal.SIGINT)
        exit_now(self._code or 1)

    def _receive(self, rank: int) -> None:
        """Read what ``rank`` has sent. A closed connection without a message means that its process has ended."""
        data = b""
        with suppress(OSError):
            data = self._peers[rank].recv(1 << 16)
        *lines, self._received[rank] = (self._received[rank] + data).split(b"\n")
        for message in map(json.loads, lines):
            if message.get("finished"):
                self._finished.add(rank)
            elif "end" in message:
                self._finished.add(rank)
                self._claim(message["end"])
                self._end_main_thread()
            else:
                self._end_all(message["message"], message["code"])
        if not data and rank not in self._finished:
            self._finished.add(rank)
            self._end_all(LOST.format(rank=rank), 1, printer=0 if rank else 1)

    def _end_main_thread(self) -> None:
        """Let the main thread raise SystemExit, which it does not notice within a collective."""
        signal.setitimer(signal.ITIMER_REAL, GRACE + 1)  # SIGALRM ends a process that holds the GIL in one long call
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        self._deadline = min(self._deadline, time.monotonic() + GRACE)


def exit_now(code: int) -> None:
    """End the process without the destructors of the process group, which may wait for other ranks."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _raise_exit(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal would interrupt the removal of temporary files
    raise SystemExit(128 + number)
