"""The command line in several processes, by torchrun and without it."""

import os
import socket
import subprocess
import sys

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


def end(process):
    """Wait for a process; return its exit code, standard output and standard error."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def free_port():
    """Return a port of this machine that no process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
