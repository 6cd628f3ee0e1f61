"""Entry point of the command line: run one command and return its exit code."""

import sys
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from ..distributed.launch import Launch
from ..distributed.liveness import STOPPED
from ..errors import Error
from ..startup import raise_on_interrupt
from .operator_files import load_operator_files
from .parser import COMMANDS, build_parser
from .ranks import RankRun
from .streams import discard, prepare_streams, print_error

Args = TypeVar("Args")


def main(argv: list[str] | None = None) -> int:
    """Run ``msrnn`` with the arguments ``argv`` (default: ``sys.argv``) and return the exit code of :func:`exit_code`."""
    prepare_streams()
    words = sys.argv[1:] if argv is None else argv
    try:
        launch = Launch.of()
    except Error as error:
        print_error(f"msrnn: {error}")
        return 1
    if launch.size == 1:
        return exit_code(_run, words)
    run = RankRun(launch)
    return run.run(lambda: exit_code(partial(_run, ranks_run=run), words, run.report))


def _run(argv: list[str], ranks_run: RankRun | None = None) -> None:
    raise_on_interrupt()
    others = load_operator_files(argv)
    args = build_parser().parse_args(others if argv[:1] == ["lm-eval"] else argv)  # the harness does not know this option
    args.launch, args.group = (Launch() if ranks_run is None else ranks_run.launch), None
    if ranks_run is None or ranks_run.start(args):
        COMMANDS[args.command].run(args)


def _print(message: str, code: int) -> None:
    print_error(message)


def exit_code(run: Callable[[Args], None], args: Args, report: Callable[[str, int], None] = _print) -> int:
    """Call ``run(args)`` and turn its exceptions into an exit code.

    Args:
        run, args: the command.
        report: called with an error message and the exit code. Over several ranks it also ends the others.

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
        report(f"msrnn: {error}", 1)
        return 1
    except KeyboardInterrupt:
        report(STOPPED, 130)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does; this is not worth a message
        discard(sys.stdout)
        return 1
    except OSError as error:
        discard(sys.stdout)
        is_output = error.errno is not None and error.filename is None
        report(f"msrnn: cannot write the output ({error.strerror})" if is_output else f"msrnn: {error}", 1)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
