"""llama.cpp as a baseline, through the package llama-cpp-python in another environment and process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..result import SkipBenchmark
from ..settings import Bench
from .other_environment import installed_versions, start_baseline

SCRIPT = Path(__file__).with_name("llama_cpp_worker.py")
OPTION = "--llama-cpp-python"


def version(python: Path) -> str:
    """Return the version of llama-cpp-python for the interpreter ``python``.

    Raises:
        Error: ``python`` is not a Python interpreter, or llama-cpp-python is missing.
    """
    return installed_versions(OPTION, python, ("llama-cpp-python",))[0]


@contextmanager
def stepping(bench: Bench, ids: Tensor, steps: int) -> Iterator[Callable[[], None]]:
    """Yield a function that makes ``steps`` steps in llama.cpp.

    Each step reads one token and crops the cache to its previous length. Keys and values are float16, the default.

    Args:
        bench: the run.
        ids: ``(1, size)`` int64, read first.
        steps: number of tokens per call.

    Raises:
        SkipBenchmark: no interpreter or no GGUF file was given, another device than the CPU, the process failed, or its cache
            or its vocabulary has another size than expected.
    """
    if bench.llama_cpp is None:
        raise SkipBenchmark(f"no {OPTION} was given")
    if bench.gguf is None:
        raise SkipBenchmark("MODEL is no .gguf file and no --gguf was given")
    if bench.device.type != "cpu":
        raise SkipBenchmark(f"llama.cpp is measured on the CPU only; --device is {bench.device}")
    expected = [ids.shape[1], bench.cell().config.vocab_size]
    settings: dict[str, Any] = {"path": str(bench.gguf.absolute()), "ids": ids[0].tolist(), "threads": torch.get_num_threads()}

    def find_mistake(answer: list[int]) -> str | None:
        found = answer[:2]
        return None if found == expected else f"cache and vocabulary have {found} entries; expected {expected}"

    with start_baseline("llama.cpp", bench.llama_cpp, SCRIPT, find_mistake) as request:
        request(settings)
        yield lambda: request(steps)
