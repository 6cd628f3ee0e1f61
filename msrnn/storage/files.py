"""Files, whole or not at all: what is written gets its name at the end, what is read is refused in one sentence."""

import glob
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import Error

MOST = 1 << 27
"""Bytes of a small file: 128 MB, four times the largest tokenizer.json that we know of."""


def check_new_folder(folder: str | Path) -> Path:
    """``folder`` with its links followed, if it is new or empty.

    Raises:
        Error: something is there already.
    """
    try:
        target = Path(folder).resolve()
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except (OSError, ValueError, RuntimeError) as wrong:  # too long a name, a NUL in it, links in a circle
        raise Error(f"cannot write {folder} ({getattr(wrong, 'strerror', None) or wrong})") from None
    if taken:
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
    try:
        target = Path(path).resolve()
        taken = target.is_dir()
    except (OSError, ValueError, RuntimeError) as wrong:
        raise Error(f"cannot write {path} ({getattr(wrong, 'strerror', None) or wrong})") from None
    if taken:
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


def read_bytes(path: Path) -> bytes:
    """The whole of a small file.

    Raises:
        Error: no such file, no file (a pipe or a device would never end), a large one.
    """
    try:
        check_file(path)
        if (size := path.stat().st_size) > MOST:
            raise Error(f"{path} has {size} bytes; expected a small file, of at most {MOST}")
        return path.read_bytes()
    except OSError as wrong:
        raise Error(f"cannot read {path} ({wrong.strerror})") from None


def check_file(path: Path) -> None:
    """Refuse what is not there, and what is there but no file with something in it.

    Raises:
        Error: as said.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as wrong:  # ValueError: a name with a NUL in it
        raise Error(f"cannot read {path} ({getattr(wrong, 'strerror', None) or wrong})") from None
    if not stat.S_ISREG(found.st_mode):
        raise Error(f"cannot read {path}; expected a file, and no folder, pipe or device")
    if not found.st_size:  # also what /proc offers as files
        raise Error(f"cannot read {path}; it is empty")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises as :func:`read_bytes` and :func:`parse_json`."""
    return parse_json(read_bytes(path), path)


def parse_json(text: bytes, where: object) -> dict[str, Any]:
    """A JSON object from UTF-8 text, in the standard's sense: no NaN, no infinity, no key twice in an object.

    Raises:
        Error: it is something else; ``where`` it stands is said.
    """
    try:
        facts = json.loads(text.decode(), object_pairs_hook=each_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as wrong:
        raise Error(f"{where} is not JSON ({wrong})") from None
    if not isinstance(facts, dict):
        raise Error(f"{where} holds a {type(facts).__name__}; expected a JSON object")
    return facts


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of its pairs; ``ValueError`` where a key is there twice."""
    facts: dict[str, Any] = {}
    for key, value in pairs:
        if key in facts:
            raise ValueError(f"key {key!r:.60} is there twice")
        facts[key] = value
    return facts


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def read_tensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a safetensors file, one by one, on the CPU.

    Raises:
        Error: no such file, truncated or corrupt.
    """
    check_header(path)
    with opened(path) as file:
        for name in list(file.keys()):
            yield name, file.get_tensor(name)


def read_about(path: str | Path) -> dict[str, str]:
    """The text that stands in a safetensors file; raises as :func:`read_tensors`."""
    check_header(path)
    with opened(path) as file:
        return file.metadata() or {}


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """A safetensors file.

    Raises:
        Error: no such file, truncated or corrupt.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as wrong:
        raise Error(f"cannot read {path} as safetensors ({wrong})") from None


def check_header(path: str | Path) -> None:
    """Refuse what the safetensors package lets pass, a tensor that is named twice; and, before a byte of them is mapped,
    tensors that do not end where the file does.

    Raises:
        Error: as said; no file; a header that is none.
    """
    path = Path(path)
    check_file(path)
    try:
        with path.open("rb") as file:
            start, size = 8 + int.from_bytes(file.read(8), "little"), path.stat().st_size
            if not 8 < start <= min(size, MOST):
                raise Error(f"{path} is cut short, or no safetensors file: a header of {start - 8} bytes in one of {size}")
            header = parse_json(file.read(start - 8), f"{path}: the header of a safetensors file")
    except OSError as wrong:
        raise Error(f"cannot read {path} ({wrong.strerror})") from None
    try:
        end = max((x["data_offsets"][1] for name, x in header.items() if name != "__metadata__"), default=0)
        whole = start + end == size
    except (TypeError, KeyError, IndexError):
        raise Error(f"{path}: the header of a safetensors file does not say where its tensors lie") from None
    if not whole:
        raise Error(f"{path} has {size} bytes; its safetensors header expects {start + end!r:.60}")
