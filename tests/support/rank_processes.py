"""The command line in several processes, by torchrun and without it."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress

from support.command_line import PATIENCE

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def torchrun(n, *args):
    """Start ``torchrun --nproc-per-node n -m msrnn`` with ``args`` and return the running process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", "--master-port", str(free_port())]
    return subprocess.Popen([*launcher, "-m", "msrnn", *map(str, args)], **PIPES)


def start_ranks(n, *args):
    """Start ``msrnn`` with ``args`` as n ranks, without torchrun, and return the running processes."""
    address = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "msrnn", *map(str, args)]
    return [subprocess.Popen(command, env={**os.environ, **address, "RANK": str(rank)}, **PIPES) for rank in range(n)]


def start_waiting_rank(*args):
    """Start rank 0 of two by a launcher, as torchrun does. Return the launcher when the rank waits for the other one."""
    address = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port := free_port())}
    command = [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", sys.executable, "-m", "msrnn"]
    launcher = subprocess.Popen([*command, *args], env={**os.environ, **address, "TORCHELASTIC_RUN_ID": "none"}, **PIPES)
    until = time.monotonic() + PATIENCE
    while launcher.poll() is None and time.monotonic() < until:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            break
        time.sleep(0.05)
    return launcher


def end(process):
    """Wait for a process; return its exit code, standard output and standard error."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def free_port():
    """Return a port of this machine that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
