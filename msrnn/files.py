"""Files, whole or not at all: what is written gets its name at the end, what is read is refused in one sentence."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .error import Error


def check_new_folder(folder: str | Path) -> Path:
    """``folder`` with its links followed, if it is new or empty.

    Raises:
        Error: something is there already.
    """
    target = Path(folder).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Error(f"{folder} exists already; expected a new or empty folder to write to")
    return target


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into that gets its name only when the block ends well; otherwise nothing is left.

    Raises:
        Error: something is there already, or it cannot be written.
    """
    target = check_new_folder(folder)
    with _beside(target) as beside:
        beside.mkdir(parents=True)
        yield beside


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A file to write that takes its name, and the place of what had it, only when the block ends well.

    Raises:
        Error: it cannot be written.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise Error(f"{path} is a folder; expected a file to write")
    with _beside(target) as beside:
        yield beside


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    beside = target.with_name(f".{target.stem}.partial-{os.getpid()}{target.suffix}")
    try:
        yield beside
        os.replace(beside, target)
    except OSError as wrong:
        raise Error(f"cannot write {target} ({wrong.strerror or wrong})") from None
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in ``folder``."""
    for left in folder.glob(".*.partial-*"):
        left.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """``tensors`` and a little text as one safetensors file, readable to whom a new file would be.

    Raises:
        Error: it cannot be written.
    """
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file({name: x.contiguous() for name, x in tensors.items()}, path, dict(about))
        path.chmod(mode)  # safetensors makes its files private
    except (SafetensorError, OSError) as wrong:
        raise Error(f"cannot write {path.name} ({wrong})") from None


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
    with _opened(path) as file:
        for name in list(file.keys()):
            yield name, file.get_tensor(name)


def read_names(path: str | Path) -> list[str]:
    """The names of the tensors in a safetensors file; raises as :func:`read_tensors`."""
    with _opened(path) as file:
        return list(file.keys())


def read_about(path: str | Path) -> dict[str, str]:
    """The text that stands in a safetensors file; raises as :func:`read_tensors`."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextmanager
def _opened(path: str | Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as wrong:
        raise Error(f"cannot read {path} as safetensors ({wrong})") from None
