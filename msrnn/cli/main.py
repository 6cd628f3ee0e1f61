"""Entry point of the command line: run one command and return its exit code."""

import io
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from ..errors import Error
from .operator_files import load_operator_files
from .parser import COMMANDS, build_parser

Args = TypeVar("Args")


def main(argv: list[str] | None = None) -> int:
    """Run ``msrnn`` with the arguments ``argv`` (default: ``sys.argv``) and return the exit code of :func:`exit_code`."""
    if sys.stdout is None:  # closed by the caller
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the characters prints question marks
    return exit_code(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> None:
    load_operator_files(argv)
    args = build_parser().parse_args(argv)
    COMMANDS[args.command].run(args)


def exit_code(run: Callable[[Args], None], args: Args) -> int:
    """Call ``run(args)`` and turn its exceptions into an exit code.

    Returns:
        0 after success; 1 after an :class:`~msrnn.Error`, which is printed as one sentence, or if the output cannot be written;
        130 after ctrl-C.
    """
    try:
        run(args)
        sys.stdout.flush()
    except Error as error:
        print(f"msrnn: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does; this is not worth a message
        _discard_output()
        return 1
    except OSError as error:
        _discard_output()
        print(f"msrnn: cannot write the output ({error.strerror})", file=sys.stderr)
        return 1
    return 0


def _discard_output() -> None:
    """Redirect standard output to the null device, so that Python's flush at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
