"""Files, whole or not at all: what is written gets its name at the end, what is read is refused in one sentence."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .error import Error


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into that gets its name only when the block ends well; otherwise nothing is left."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Error(f"{folder} exists already; expected a new or empty folder to write to")
    beside = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        beside.mkdir(parents=True)
        yield beside
        os.replace(beside, folder)
    except OSError as wrong:
        raise Error(f"cannot write {folder} ({wrong})") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """``facts`` as an indented JSON file."""
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        Error: no such file, not JSON, not an object.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as wrong:
        raise Error(f"cannot read {path} ({wrong.strerror})") from None
    except (ValueError, RecursionError) as wrong:
        raise Error(f"{path} is not JSON ({wrong})") from None
    if not isinstance(facts, dict):
        raise Error(f"{path} holds a {type(facts).__name__}; expected a JSON object")
    return facts


def read_tensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, one by one, on the CPU.

    Raises:
        Error: no such file, truncated or corrupt.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (the handle is no mapping)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as wrong:
        raise Error(f"cannot read {path} as safetensors ({wrong})") from None


def read_about(path: str | Path) -> dict[str, str]:
    """The text metadata of a safetensors file.

    Raises:
        Error: as :func:`read_tensors`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as wrong:
        raise Error(f"cannot read {path} as safetensors ({wrong})") from None
