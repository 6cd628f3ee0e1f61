"""Python interpreters of other environments, in which the worker processes of baselines run."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ...errors import Error
from ...startup import DEFAULT_SPIN_COUNT, SPIN_COUNT

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
