"""Atomic files and folders, and strict JSON."""

import glob
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import Error

MAX_SMALL_FILE_BYTES = 1 << 27
"""Maximum size of a file that is read whole: 128 MB, four times the largest known tokenizer.json."""


def check_new_folder(folder: str | Path) -> Path:
    """Return ``folder`` with symbolic links resolved.

    Raises:
        Error: the path exists and is not an empty folder, or it is not a valid path.
    """
    try:
        target = Path(folder).resolve()
        occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long or contains NUL, a cycle of links
        raise Error(f"cannot write {folder} ({getattr(error, 'strerror', None) or error})") from None
    if occupied:
        raise Error(f"{folder} exists already; expected a new or empty folder to write to")
    return target


@contextmanager
def atomic_dir(folder: str | Path) -> Iterator[Path]:
    """Yield a staging folder that is renamed to ``folder`` when the block ends without an exception.

    After an exception the staging folder is deleted and ``folder`` is unchanged.

    Raises:
        Error: ``folder`` exists and is not empty, or it cannot be written.
    """
    target = check_new_folder(folder)
    with _staging(target) as staged:
        staged.mkdir(parents=True)
        yield staged


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a staging path that is renamed to ``path`` when the block ends without an exception.

    The rename replaces an existing file. After an exception the staging file is deleted and ``path`` is unchanged.

    Raises:
        Error: ``path`` is a folder, or it cannot be written.
    """
    try:
        target = Path(path).resolve()
        occupied = target.is_dir()
    except (OSError, ValueError, RuntimeError) as error:
        raise Error(f"cannot write {path} ({getattr(error, 'strerror', None) or error})") from None
    if occupied:
        raise Error(f"{path} is a folder; expected a file to write")
    with _staging(target) as staged:
        yield staged


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    staged = target.with_name(f".{target.stem}.partial-{os.getpid()}{target.suffix}")
    try:
        _remove_stale_staging(target)
        yield staged
        for path in (*staged.glob("*"), staged):
            _fsync(path)
        os.replace(staged, target)
        with suppress(OSError):  # the rename has succeeded
            _fsync(target.parent)
    except OSError as error:
        raise Error(f"cannot write {target} ({error.strerror or error})") from None
    finally:
        _remove(staged)


def _remove_stale_staging(target: Path) -> None:
    """Delete staging files of ``target`` left by killed processes.

    The file name contains the process id. Files of processes that are still running are not deleted.
    """
    for path in target.parent.glob(f".{glob.escape(target.stem)}.partial-*{glob.escape(target.suffix)}"):
        process = path.name.removeprefix(f".{target.stem}.partial-").removesuffix(target.suffix)
        if process.isdecimal() and not _is_running(int(process)):
            _remove(path)


def _is_running(process: int) -> bool:
    if process == os.getpid():  # left by an earlier process with the same id
        return False
    if os.name != "posix":  # os.kill terminates the process on other systems, even with signal 0
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's process
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk, so that a power cut after the rename loses no content."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write ``fields`` as an indented JSON object."""
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def read_bytes(path: Path) -> bytes:
    """Return the content of a small file.

    Raises:
        Error: the file does not exist, is empty, is not a regular file, or is larger than :data:`MAX_SMALL_FILE_BYTES`.
    """
    try:
        check_file(path)
        if (size := path.stat().st_size) > MAX_SMALL_FILE_BYTES:
            raise Error(f"{path} has {size} bytes; expected a small file, of at most {MAX_SMALL_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise Error(f"cannot read {path} ({error.strerror})") from None


def check_file(path: Path) -> None:
    """Refuse a path that is not a regular file with content.

    Raises:
        Error: the path does not exist, is empty, or is a folder, pipe or device.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: the name contains NUL
        raise Error(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(found.st_mode):
        raise Error(f"cannot read {path}; expected a file, and no folder, pipe or device")
    if not found.st_size:  # files in /proc also report size 0
        raise Error(f"cannot read {path}; it is empty")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        Error: as :func:`read_bytes` and :func:`parse_json`.
    """
    return parse_json(read_bytes(path), path)


def parse_json(text: bytes, where: object) -> dict[str, Any]:
    """Return the JSON object in UTF-8 text.

    Stricter than ``json.loads``: NaN, infinities and duplicate keys are refused.

    Args:
        text: encoded JSON.
        where: name of the source, for error messages.

    Raises:
        Error: the text is not a JSON object.
    """
    try:
        fields = json.loads(text.decode(), object_pairs_hook=reject_duplicate_keys, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise Error(f"{where} is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise Error(f"{where} holds a {type(fields).__name__}; expected a JSON object")
    return fields


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its pairs (``object_pairs_hook``); ValueError if a key occurs twice."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"key {key!r:.60} occurs twice")
        fields[key] = value
    return fields


def _reject_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
