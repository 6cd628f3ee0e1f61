"""Whether guessing pays: a pass with guesses costs more than a plain one, and is worth as much as its guesses are right.

Both are measured as decoding goes on. What guesses cost and did not bring in is kept in an account, so that where they never
come true only a small share of the time is lost.
"""

from collections import defaultdict
from collections.abc import Sequence

SHARE = 0.03
"""Of the time of plain decoding, what may be lost on guesses."""
CREDIT = 1.5
"""Plain passes' worth of time that may be lost before there is a share, while there is hope."""
FIRST: dict[int | None, float] = {None: 0.0, 0: 1.0, 1: 0.5, 2: 1.5}
MORE = 4.0
"""Tokens that a guess is hoped to bring before any was tried, by how many tokens before it agree; of more, ``MORE``."""
NEW = 0.25
"""Weight of what is new in a mean."""


class Watch:
    """Looks on as texts are written, and says when to guess. Of each text that goes on it is told in how many tokens the best
    guess agrees (``context``), None where there is no guess."""

    def __init__(self) -> None:
        self._plain = self._guessed = 0.0  # seconds a pass
        self._account = 0.0  # seconds; negative is a debt
        self._hope = defaultdict(lambda: MORE, FIRST)

    def pays(self, contexts: Sequence[int | None]) -> bool:
        """Whether to read the guesses there are: where they are hoped to pay, and now and then to see whether they do."""
        if not self._plain or all(context is None for context in contexts):
            return False  # at first, see what a plain pass takes
        gain = sum(self._hope[context] for context in contexts) / len(contexts) * self._plain
        return self._account - self._cost >= (-CREDIT * self._plain if gain > self._cost else 0)

    def plain(self, seconds: float) -> None:
        """A plain pass took so long."""
        self._plain = _mean(self._plain, seconds)
        self._account = min(self._account + SHARE * self._plain, CREDIT * self._plain + self._cost)

    def guessed(self, seconds: float, contexts: Sequence[int | None], gains: Sequence[int]) -> None:
        """A pass with guesses did, and brought each text so many tokens more than a plain one would have."""
        seconds = min(seconds, 2 * (self._guessed or self._plain))
        self._guessed = _mean(self._guessed, seconds)
        for context, gain in zip(contexts, gains, strict=True):
            if context is not None:
                self._hope[context] += NEW * (gain - self._hope[context])
        profit = (1 + SHARE + sum(gains) / len(gains)) * self._plain - seconds
        if profit < 0 or self._account < 0:  # a profit pays debts; it is not for trying more
            self._account = self._account + profit if profit < 0 else min(self._account + profit, 0)

    @property
    def _cost(self) -> float:
        """Seconds that a pass with guesses takes more than a plain one; before there was one, as many as that."""
        return max(self._guessed - self._plain, 0.1 * self._plain) if self._guessed else self._plain


def _mean(mean: float, seconds: float) -> float:
    """The mean with one more in it. What takes twice as long was held up: by other work, or by kernels that are made once."""
    return mean + NEW * (min(seconds, 2 * mean) - mean) if mean else seconds
