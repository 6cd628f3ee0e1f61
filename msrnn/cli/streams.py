"""Standard input, output and error of a command: closed streams, encodings, warnings, and output that cannot be written."""

import codecs
import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO


def prepare_streams() -> None:
    """Replace output streams that the caller has closed, and let a terminal without a character print a question mark."""
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), sys.stderr or io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


@contextmanager
def print_warnings() -> Iterator[None]:
    """Print each Python warning of the block as one line on standard error, without file and line number."""
    with warnings.catch_warnings(record=True) as found:
        yield
    for warning in found:
        print(f"msrnn: {warning.message}", file=sys.stderr)


def read_input_as_utf8() -> None:
    """Let standard input replace invalid bytes, and decode UTF-8 where the locale has ASCII, a subset of UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        sys.stdin.reconfigure(encoding="utf-8" if is_ascii else None, errors="replace")


def decode_utf8(text: str) -> str:
    """Return the UTF-8 text that the command line or standard input contains.

    Python decodes them with the locale. The C locale without UTF-8 mode gives lone surrogates for all bytes beyond ASCII.

    Raises:
        UnicodeError: the bytes are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return os.fsencode(text).decode()
    return text


def print_error(message: str) -> None:
    """Print a line to standard error. If that is not possible, the exit code has to do."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Redirect a stream to the null device, so that Python's flush at exit does not fail again."""
    with suppress(OSError):  # no file: the streams of a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
