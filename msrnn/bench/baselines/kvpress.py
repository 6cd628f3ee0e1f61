"""kvpress as a baseline. It pins an older version of transformers, so it runs in another environment and process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..result import SkipBenchmark
from ..settings import Bench
from .other_environment import installed_versions, start_baseline

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

    def find_mistake(length: int) -> str | None:
        return None if length == bench.size else f"its cache holds {length} rows; expected {bench.size}"

    with start_baseline("kvpress", bench.kvpress, SCRIPT, find_mistake) as request:
        request(settings)
        yield lambda: request(steps)
