"""kvpress as a baseline. It pins an older version of transformers, so it runs in another environment and process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..result import SkipBenchmark
from ..settings import Bench
from ..worker import start_worker
from .interpreter import installed_versions, worker_environment

SCRIPT = Path(__file__).with_name("kvpress_worker.py")


def versions(python: Path) -> str:
    """Return the versions installed for the interpreter ``python``, such as ``0.5.5, transformers 5.2.0``.

    Raises:
        Error: ``python`` is not a Python interpreter, or kvpress or transformers is missing.
    """
    own, transformers = installed_versions("--kvpress-python", python, ("kvpress", "transformers"))
    return f"{own}, transformers {transformers}"


@contextmanager
def decoding(bench: Bench, ids: Tensor, steps: int) -> Iterator[Callable[[], None]]:
    """Yield a function that decodes ``steps`` tokens in kvpress.

    The press is ``DecodingPress(TOVAPress(), compression_interval=1, target_size=size)``.

    Args:
        bench: the run.
        ids: ``(1, size)`` int64, read first in one dense forward pass.
        steps: number of tokens per call.

    Raises:
        SkipBenchmark: no interpreter was given, the process failed, or its cache has another length than ``size``.
    """
    if bench.kvpress is None:
        raise SkipBenchmark("no --kvpress-python was given")
    settings: dict[str, Any] = {
        **{"folder": str(bench.export()), "ids": ids[0].tolist(), "size": bench.size, "device": str(bench.device)},
        **{"dtype": str(bench.dtype).removeprefix("torch."), "threads": torch.get_num_threads()},
    }
    with start_worker([str(bench.kvpress), "-u", "-c", SCRIPT.read_text("utf-8")], worker_environment()) as ask:

        def request(value: Any) -> None:
            try:
                length = ask(value)
            except SkipBenchmark as reason:
                raise SkipBenchmark(f"kvpress: {reason}") from None
            if length != bench.size:
                raise SkipBenchmark(f"kvpress: its cache holds {length} rows; expected {bench.size}")

        request(settings)
        yield lambda: request(steps)
