"""What followed what: texts, and where in them every few tokens stand, so that what came next there can be guessed here."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import Error


class Guess(NamedTuple):
    """Tokens that may come next. ``context``: how many tokens agree before the place where they did; 0 where there is none."""

    tokens: list[int]
    context: int


class Pool:
    """N-grams, found by how they begin. It can be handed from call to call and be given other texts: all that is taken from it
    are guesses.

    Args:
        context: of how many tokens a beginning may be; the longest that is known is asked first.
        most: how many places of each beginning are kept, the newest.

    Raises:
        Error: either is below 1.
    """

    def __init__(self, context: int = 3, most: int = 32):
        for name, value in {"context": context, "most": most}.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Error(f"Pool: {name} is {value!r:.60}; expected a whole number of at least 1")
        self.context, self.most, self.largest = context, most, -1
        self._places: dict[tuple[int, ...], deque[tuple[list[int], int]]] = {}

    def add(self, text: list[int], start: int = 0) -> None:
        """Keep ``text`` from ``start`` on: the list itself, so that a text that grows is added bit by bit."""
        self.largest = max([self.largest, *text[start:]])
        for place in range(max(1, start), len(text)):
            for begin in range(max(0, place - self.context), place):
                self._places.setdefault(tuple(text[begin:place]), deque(maxlen=self.most)).append((text, place))

    def after(self, text: list[int], count: int, length: int) -> list[Guess]:
        """Up to ``count`` ways in which ``text`` may go on, by up to ``length`` tokens: those after the longest beginning
        first, of these the newest; none is the beginning of one before it."""
        found: list[Guess] = []
        for guess in self._all(text, length) if count > 0 < length else ():
            if not any(known.tokens[: len(guess.tokens)] == guess.tokens for known in found):
                found.append(guess)
            if len(found) == count:
                break
        return found

    def _all(self, text: list[int], length: int) -> Iterator[Guess]:
        for context in range(min(self.context, len(text)), 0, -1):
            for source, place in reversed(self._places.get(tuple(text[-context:]), ())):
                tokens = source[place : place + length]
                while source is text and len(tokens) < length:  # past its end comes what is being guessed
                    tokens.append(tokens[place + len(tokens) - len(text)])
                yield Guess(tokens, context)
