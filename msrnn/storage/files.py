"""Small files, and strict JSON."""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import Error

MAX_SMALL_FILE_BYTES = 1 << 27
"""Maximum size of a file that is read whole: 128 MB, four times the largest known tokenizer.json."""


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write ``fields`` as an indented JSON object."""
    path.write_bytes(to_json(fields))


def to_json(fields: Mapping[str, Any]) -> bytes:
    """Return the content of a JSON file with ``fields``, indented."""
    return (json.dumps(fields, indent=2) + "\n").encode()


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


@dataclass(frozen=True)
class FileVersion:
    """A file and the identity of its content: device, inode, size and time of change."""

    path: Path
    identity: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, file: BinaryIO) -> "FileVersion":
        """Return the version of ``path``, which has been opened as ``file``."""
        found = os.fstat(file.fileno())
        return cls(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


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
