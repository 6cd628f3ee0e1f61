"""Settings of the process for ``msrnn`` and ``python -m converters``: ctrl-C during the imports, and the threads of OpenMP.

The import of torch takes a second or more. The first import of both packages calls :func:`exit_on_interrupt`, and the command
line calls :func:`raise_on_interrupt` when it is ready. Ctrl-C exits with code 130 and without a traceback. OpenMP reads its
environment when torch is imported, so :func:`limit_spinning` is called before. If another program imports the library, neither
signal handlers nor the environment change.
"""

import os
import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import FrameType

PROGRAMS = ("msrnn", "converters")
PARENT = os.getppid()
"""The process that has started this one, before the import of torch."""

SPIN_COUNT, DEFAULT_SPIN_COUNT = "10000", "300000"
"""Number of polls after which a waiting thread of libgomp sleeps: in the commands, and the default of libgomp."""


def exit_on_interrupt() -> None:
    """Let ctrl-C end the process at once, if Python runs one of ``PROGRAMS`` and SIGINT has its default handler."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default and threading.current_thread() is threading.main_thread() and is_program(sys.argv, sys.orig_argv):
        signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """Let ctrl-C raise KeyboardInterrupt again, after :func:`exit_on_interrupt`."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def limit_spinning() -> None:
    """Let waiting threads of OpenMP sleep early, if Python runs one of ``PROGRAMS`` and the user has set no policy.

    A step has hundreds of parallel regions. At the end of each region, a thread polls until the others are done. Next to busy
    processes it polls for a thread that waits for a core, and takes a core itself (docs/bench.md, "Busy machines").
    """
    if is_program(sys.argv, sys.orig_argv) and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


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
    if os.environ.get("RANK", "0") == "0":  # torchrun sends the signal to every rank
        os.write(2, b"\nstopped\n")
    os._exit(130)
