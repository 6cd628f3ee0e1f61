"""Types of command-line arguments that several commands share."""

import argparse


def positive_int(text: str) -> int:
    """Parse an integer of at least 1.

    Raises:
        ArgumentTypeError: ``text`` is not one.
    """
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
