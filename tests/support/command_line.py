"""The command line in a new process, as a shell runs it."""

import subprocess
import sys

PATIENCE = 600
"""Seconds after which a test gives up. A loaded machine may need many times the usual time."""
PROMPT = "The sea was calm that morning, and"


def run(*args, **settings):
    """Run ``msrnn`` with ``args`` and return the finished process with its output."""
    return subprocess.run(
        [sys.executable, "-m", "msrnn", *map(str, args)], capture_output=True, text=True, timeout=PATIENCE, **settings
    )


def start(*args):
    """Start ``msrnn`` with ``args`` and return the running process; its output is bytes."""
    return subprocess.Popen([sys.executable, "-m", "msrnn", *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
