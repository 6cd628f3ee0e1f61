"""Entry point of the command line: run one command and return its exit code."""

import sys
from collections.abc import Callable
from typing import TypeVar

from ..errors import Error
from ..startup import raise_on_interrupt
from .operator_files import load_operator_files
from .parser import COMMANDS, build_parser
from .streams import discard, prepare_streams, print_error

Args = TypeVar("Args")


def main(argv: list[str] | None = None) -> int:
    """Run ``msrnn`` with the arguments ``argv`` (default: ``sys.argv``) and return the exit code of :func:`exit_code`."""
    prepare_streams()
    return exit_code(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: list[str]) -> None:
    raise_on_interrupt()
    others = load_operator_files(argv)
    args = build_parser().parse_args(others if argv[:1] == ["lm-eval"] else argv)  # the harness does not know this option
    COMMANDS[args.command].run(args)


def exit_code(run: Callable[[Args], None], args: Args) -> int:
    """Call ``run(args)`` and turn its exceptions into an exit code.

    Returns:
        0 after success; 1 after an :class:`~msrnn.Error`, which is printed as one sentence, or if the output cannot be written;
        130 after ctrl-C.

    Raises:
        SystemExit: by argparse, after a help text or an invalid command line.
    """
    try:
        try:
            run(args)
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except Error as error:
        print_error(f"msrnn: {error}")
        return 1
    except KeyboardInterrupt:
        print_error("\nstopped")
        return 130
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does; this is not worth a message
        discard(sys.stdout)
        return 1
    except OSError as error:
        discard(sys.stdout)
        is_output = error.errno is not None and error.filename is None
        print_error(f"msrnn: cannot write the output ({error.strerror})" if is_output else f"msrnn: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
