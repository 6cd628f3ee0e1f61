"""The command ``python -m converters SOURCE TARGET``, which is ``msrnn convert``."""

import sys

from msrnn.cli.main import main as run_msrnn


def main(argv: list[str] | None = None) -> int:
    """Run ``msrnn convert`` with the arguments ``argv`` (default: ``sys.argv``) and return its exit code."""
    return run_msrnn(["convert", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
