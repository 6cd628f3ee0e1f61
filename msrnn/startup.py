"""Ctrl-C while ``msrnn`` or ``python -m converters`` imports its modules: exit with code 130 and without a traceback.

The import of torch takes a second or more. The first import of both packages calls :func:`exit_on_interrupt`, and the command
line calls :func:`raise_on_interrupt` when it is ready. A library that is imported by another program changes no signal handler.
"""

import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import FrameType

PROGRAMS = ("msrnn", "converters")


def exit_on_interrupt() -> None:
    """Let ctrl-C end the process at once, if Python runs one of ``PROGRAMS`` and SIGINT has its default handler."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and threading.current_thread() is threading.main_thread() and is_program(sys.argv, sys.orig_argv):
        signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """Let ctrl-C raise KeyboardInterrupt again, after :func:`exit_on_interrupt`."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_program(argv: list[str], orig_argv: list[str]) -> bool:
    """Return True if Python runs ``-m msrnn``, ``-m converters`` or the script ``bin/msrnn``.

    Args:
        argv: ``sys.argv``; its first word is ``-m`` while Python imports the package of a module to run.
        orig_argv: ``sys.orig_argv``. In worker processes of multiprocessing it differs from ``argv``.
    """
    if argv[:1] == ["-m"]:
        return any(word.startswith("-") and word.endswith("m") and name in PROGRAMS for word, name in pairwise(orig_argv))
    return bool(argv) and Path(argv[0]).name == "msrnn" and argv[0] in orig_argv


def _exit(number: int, frame: FrameType | None) -> None:
    os.write(2, b"\nstopped\n")
    os._exit(130)
