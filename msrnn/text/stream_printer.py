"""Text as it comes, and in a terminal which of it came in one pass."""

import os
import sys
from collections import Counter
from typing import TextIO

COLOURS, PLAIN = ("\033[36m", "\033[32m"), "\033[0m"


class Live:
    """What passes bring is written at once. In a terminal, tokens that came together have a colour, their neighbours another;
    a token that came alone has none.

    Args:
        out: where to; standard output unless said.
    """

    def __init__(self, out: TextIO | None = None):
        self.out = sys.stdout if out is None else out
        self.coloured = self.out.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
        self.sizes: list[int] = []

    def show(self, text: str, tokens: int) -> None:
        """``text``: what one pass brought, in so many tokens."""
        self.sizes.append(tokens)
        if tokens > 1 and self.coloured and text:
            colour = COLOURS[sum(size > 1 for size in self.sizes) % len(COLOURS)]
            text = "\n".join(f"{colour}{line}{PLAIN}" if line else "" for line in text.split("\n"))
        print(text, end="", flush=True, file=self.out)

    @property
    def written(self) -> int:
        """Tokens so far."""
        return sum(self.sizes)

    def summary(self) -> str:
        """``3.20 tokens a pass (40 passes: 21 of 1, 9 of 2, …)``; empty where every pass brought one."""
        if self.written <= len(self.sizes):
            return ""
        kinds = ", ".join(f"{n} of {size}" for size, n in sorted(Counter(self.sizes).items()))
        return f"{self.written / len(self.sizes):.2f} tokens a pass ({len(self.sizes)}: {kinds})"
