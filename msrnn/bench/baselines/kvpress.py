"""kvpress as the comparison, in an environment of its own: it pins an older transformers, so it is another process."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import Error
from ..result import Unmeasured

if TYPE_CHECKING:
    from ..settings import Bench

SCRIPT = Path(__file__).with_name("press_child.py")
VERSIONS = "from importlib.metadata import version as v; print(v('kvpress') + ', transformers ' + v('transformers'))"


def versions(python: Path) -> str:
    """What that Python has, such as ``0.5.5, transformers 5.2.0``.

    Raises:
        Error: no Python, or no kvpress there.
    """
    try:
        done = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as wrong:
        raise Error(f"--kvpress-python is {python}; expected a Python ({getattr(wrong, 'strerror', None) or wrong})") from None
    if done.returncode:
        raise Error(f"--kvpress-python is {python}; kvpress and transformers are not both installed there")
    return done.stdout.strip()


@contextmanager
def decoding(bench: "Bench", ids: Tensor, block: int) -> Iterator[Callable[[], None]]:
    """A process in which kvpress decodes under ``DecodingPress(TOVAPress(), compression_interval=1, target_size=size)``.

    Args:
        ids: ``(1, size)``, what it reads first, densely.
        block: tokens that a call decodes.

    Raises:
        Unmeasured: no Python was named, or the process came to grief.
    """
    if bench.kvpress is None:
        raise Unmeasured("no --kvpress-python was given")
    facts = {
        **{"folder": str(bench.export()), "ids": ids[0].tolist(), "size": bench.size, "device": str(bench.device)},
        **{"dtype": str(bench.dtype).removeprefix("torch."), "threads": torch.get_num_threads()},
    }
    command = [str(bench.kvpress), "-u", "-c", SCRIPT.read_text("utf-8"), json.dumps(facts)]  # its last words come last
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, **pipes, stderr=said, start_new_session=True)  # ctrl-C is for us; we end it

        def answer() -> None:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if line != str(bench.size):
                if not line:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(10)  # its last words come when its answers have ended
                said.seek(0)
                last = (said.read().strip() or "without a word").splitlines()[-1]
                found = f"its cache holds {line} rows; expected {bench.size}" if line else f"it ended ({last})"
                raise Unmeasured(f"kvpress: {found}")

        def decode() -> None:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # then there is no answer either
                process.stdin.write(f"{block}\n")
                process.stdin.flush()
            answer()

        try:
            answer()  # it has read
            yield decode
        finally:
            process.kill()
            process.communicate()
