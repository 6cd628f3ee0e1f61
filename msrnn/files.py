"""Files, whole or not at all: what is written gets its name at the end, what is read is refused in one sentence."""

import glob
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
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
        _sweep(target)
        yield beside
        for path in (*beside.glob("*"), beside):
            _settle(path)
        os.replace(beside, target)
        with suppress(OSError):  # the name stands by now
            _settle(target.parent)
    except OSError as wrong:
        raise Error(f"cannot write {target} ({wrong.strerror or wrong})") from None
    finally:
        _remove(beside)


def _sweep(target: Path) -> None:
    """Remove what runs that were killed have left of ``target``: the name says whose it was, and that process is gone."""
    for left in target.parent.glob(f".{glob.escape(target.stem)}.partial-*{glob.escape(target.suffix)}"):
        process = left.name.removeprefix(f".{target.stem}.partial-").removesuffix(target.suffix)
        if process.isdecimal() and not _runs(int(process)):
            _remove(left)


def _runs(process: int) -> bool:
    if process == os.getpid():  # of an earlier process of this number
        return False
    if os.name != "posix":  # elsewhere to ask is to kill
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, lie on the disk: a power cut after a rename then finds them."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    with opened(path) as file:
        for name in list(file.keys()):
            yield name, file.get_tensor(name)


def read_about(path: str | Path) -> dict[str, str]:
    """The text that stands in a safetensors file; raises as :func:`read_tensors`."""
    with opened(path) as file:
        return file.metadata() or {}


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file, its header checked.

    Raises:
        Error: no such file, truncated or corrupt.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as wrong:
        raise Error(f"cannot read {path} as safetensors ({wrong})") from None
