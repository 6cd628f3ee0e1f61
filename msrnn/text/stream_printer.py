"""Printing of streamed text. In a terminal, the tokens of one forward pass share a colour."""

import os
import sys
from collections import Counter
from typing import TextIO

COLOURS, RESET = ("\033[36m", "\033[32m"), "\033[0m"


class StreamPrinter:
    """The printer of streamed text.

    In a terminal, tokens that were accepted in one forward pass have one colour, and the next such group has another. Single
    tokens have none.

    Args:
        out: the output; None is standard output.
    """

    def __init__(self, out: TextIO | None = None):
        self.out = sys.stdout if out is None else out
        self.coloured = self.out.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self.counts: list[int] = []  # tokens of each forward pass

    def show(self, text: str, n_tokens: int) -> None:
        """Print the text of one forward pass, which generated ``n_tokens`` tokens."""
        self.counts.append(n_tokens)
        if n_tokens > 1 and self.coloured and text:
            colour = COLOURS[sum(n > 1 for n in self.counts) % len(COLOURS)]
            text = "\n".join(f"{colour}{line}{RESET}" if line else "" for line in text.split("\n"))
        print(text, end="", flush=True, file=self.out)

    @property
    def n_tokens(self) -> int:
        """Number of tokens so far."""
        return sum(self.counts)

    def summary(self) -> str:
        """Return ``2.00 tokens per forward pass (7: 3 of 1, 2 of 2, …)``; empty if every forward pass generated one token."""
        passes = len(self.counts)
        if self.n_tokens <= passes:
            return ""
        groups = ", ".join(f"{n} of {count}" for count, n in sorted(Counter(self.counts).items()))
        return f"{self.n_tokens / passes:.2f} tokens per forward pass ({passes}: {groups})"
