"""Baselines that run in a worker process with the Python interpreter of another environment."""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import Error
from ...startup import DEFAULT_SPIN_COUNT, SPIN_COUNT
from ..result import SkipBenchmark
from ..worker import start_worker

VERSIONS = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
"""A program that prints the versions of the distributions in its arguments."""


def installed_versions(option: str, python: Path, packages: Sequence[str]) -> list[str]:
    """Return the versions of packages that are installed for the interpreter ``python``.

    Args:
        option: the option that named the interpreter, for error messages.
        python: path of the interpreter.
        packages: names of distributions.

    Raises:
        Error: ``python`` is not a Python interpreter, or a package is missing.
    """
    try:
        done = subprocess.run([python, "-c", VERSIONS, *packages], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        found = getattr(error, "strerror", None) or error
        raise Error(f"{option} is {python}; expected a Python interpreter ({found})") from None
    if done.returncode:
        raise Error(f"{option} is {python}; expected a Python with {' and '.join(packages)} installed")
    return done.stdout.split()


def worker_environment() -> dict[str, str]:
    """Return the variables of a worker process, which undo :func:`~msrnn.startup.limit_spinning`."""
    return {"GOMP_SPINCOUNT": DEFAULT_SPIN_COUNT} if os.environ.get("GOMP_SPINCOUNT") == SPIN_COUNT else {}


@contextmanager
def start_baseline(
    name: str, python: Path, script: Path, find_mistake: Callable[[Any], str | None]
) -> Iterator[Callable[[Any], None]]:
    """Start the worker process of a baseline, and yield a function that sends a request and checks the answer.

    Args:
        name: of the baseline, for the messages.
        python: the interpreter.
        script: the program of the worker process.
        find_mistake: returns what is wrong with an answer, or None.

    Raises:
        SkipBenchmark: by the function, if the process has failed or an answer is wrong.
    """
    with start_worker([str(python), "-u", "-c", script.read_text("utf-8")], worker_environment()) as ask:

        def request(value: Any) -> None:
            try:
                mistake = find_mistake(ask(value))
            except SkipBenchmark as reason:
                raise SkipBenchmark(f"{name}: {reason}") from None
            if mistake is not None:
                raise SkipBenchmark(f"{name}: {mistake}")

        yield request
