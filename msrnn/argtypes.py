"""Values of command-line arguments that several packages share."""

import argparse
from pathlib import Path

from .errors import Error


def positive_int(text: str) -> int:
    """Parse an integer of at least 1, as an argparse type.

    Raises:
        ArgumentTypeError: ``text`` is not such an integer.
    """
    return _parse_int(text, at_least=1)


def count_int(text: str) -> int:
    """Parse an integer from 1 to 1,000, as an argparse type: a number of things that are generated before anything is measured.

    Raises:
        ArgumentTypeError: ``text`` is not such an integer.
    """
    number = _parse_int(text, at_least=1)
    if number > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1 to 1,000")
    return number


def seed_int(text: str) -> int:
    """Parse an integer of at least 0, as an argparse type.

    Raises:
        ArgumentTypeError: ``text`` is not such an integer.
    """
    return _parse_int(text, at_least=0)


def add_kv_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--kv-dtype``, the ``dtype`` of ``cell.initial_state``."""
    text = "store the KV cache in 8 bits, a quarter of the bytes of float32 (default: the dtype of the parameters)"
    parser.add_argument("--kv-dtype", choices=("int8",), help=text)


def check_distinct(args: argparse.Namespace, *options: str) -> None:
    """Refuse a value that a list option has twice.

    Args:
        args: the arguments of a command.
        options: names of options with a list or None.

    Raises:
        Error: a value occurs twice.
    """
    for name in options:
        values = list(getattr(args, name) or ())
        if repeated := [value for value in values if values.count(value) > 1]:
            raise Error(f"--{name} has {repeated[0]} twice; expected distinct values")


def _parse_int(text: str, at_least: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < at_least:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {at_least}")
    return int(text)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file.

    Raises:
        Error: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise Error(f"cannot read {path} ({getattr(error, 'strerror', None) or error})") from None
