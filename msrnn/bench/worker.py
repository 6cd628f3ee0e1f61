"""Measurements in a separate process, and the runner of all worker processes.

A worker reads requests from standard input and writes answers to standard output, one JSON value per line.
"""

import base64
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from .result import SkipBenchmark
from .settings import Bench


@contextmanager
def start_worker(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Callable[[Any], Any]]:
    """Start a worker process and yield a function ``request -> answer``; the process is killed at the end.

    The process has its own session, so ctrl-C in the terminal does not reach it.

    Args:
        command: the program and its arguments.
        environment: variables that are added to the environment.

    Raises:
        SkipBenchmark: by the function, if the process has ended; the message contains its last line on standard error.
    """
    with tempfile.TemporaryFile("w+") as errors:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors, "text": True}
        process = subprocess.Popen(command, **pipes, env={**os.environ, **environment}, start_new_session=True)

        def ask(request: Any) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # then there is no answer either
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            if line := process.stdout.readline():
                return json.loads(line)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)  # standard error is complete when the process has ended
            errors.seek(0)
            raise SkipBenchmark((errors.read().strip() or f"the process ended with code {process.poll()}").splitlines()[-1])

        try:
            yield ask
        finally:
            process.kill()
            process.communicate()


def run_in_subprocess(
    bench: Bench, measure: Callable[..., Any], ids: Tensor, *args: Any, environment: Mapping[str, str] | None = None
) -> Any:
    """Call ``measure(cell, ids, *args)`` in a new process with the same number of threads.

    Args:
        bench: the run; the cell is loaded in its dtype.
        measure: a picklable function that returns a JSON value.
        ids: ``(1, T)`` int64.
        args: further arguments, picklable.
        environment: variables that are added to the environment.

    Raises:
        SkipBenchmark: the function or the process failed.
    """
    call = (bench.load, bench.cell_dtype, torch.get_num_threads(), measure, ids.tolist(), bench.device, args)
    paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # to find the pickled functions
    with start_worker([sys.executable, "-c", f"from {__name__} import main; main()"], {**paths, **(environment or {})}) as ask:
        return ask(base64.b64encode(pickle.dumps(call)).decode())


def main() -> None:
    """Answer one request of :func:`run_in_subprocess`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps the prints of libraries apart from the answer
    load, dtype, threads, measure, ids, device, args = pickle.loads(base64.b64decode(json.loads(sys.stdin.readline())))
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            print(json.dumps(measure(load(dtype=dtype), torch.tensor(ids, device=device), *args)), file=answers, flush=True)
    except SkipBenchmark as reason:
        sys.exit(str(reason))
