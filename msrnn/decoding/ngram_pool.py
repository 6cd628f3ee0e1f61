"""The n-gram pool of lookahead decoding: an index over token sequences that returns continuations of a text as drafts."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import check_int


class Draft(NamedTuple):
    """Tokens that may come next.

    Attributes:
        tokens: the drafted ids.
        match_length: number of tokens before the draft that match the text; 0 if the draft is not from a pool.
    """

    tokens: list[int]
    match_length: int


class NgramPool:
    """N-grams, indexed by their first tokens.

    A pool can be passed from call to call and can hold other texts. It only supplies drafts, so it cannot change the output.

    Args:
        max_match_length: maximum number of tokens that are matched before a draft. The longest match is preferred.
        max_entries: maximum number of occurrences stored per n-gram; the newest are retained.

    Attributes:
        max_token_id: the largest id in the pool; -1 if the pool is empty.

    Raises:
        Error: an argument is not an int of at least 1.
    """

    def __init__(self, max_match_length: int = 3, max_entries: int = 32):
        check_int("NgramPool: max_match_length", max_match_length)
        check_int("NgramPool: max_entries", max_entries)
        self.max_match_length, self.max_entries, self.max_token_id = max_match_length, max_entries, -1
        self._occurrences: dict[tuple[int, ...], deque[tuple[list[int], int]]] = {}

    def add(self, text: list[int], start: int = 0) -> None:
        """Index ``text`` from index ``start`` on.

        The list itself is stored, not a copy. A text that grows is indexed by one call for each new token.
        """
        self.max_token_id = max([self.max_token_id, *text[start:]])
        for end in range(max(1, start), len(text)):
            for begin in range(max(0, end - self.max_match_length), end):
                self._occurrences.setdefault(tuple(text[begin:end]), deque(maxlen=self.max_entries)).append((text, end))

    def lookup(self, text: list[int], count: int, length: int) -> list[Draft]:
        """Return up to ``count`` drafts of up to ``length`` tokens that may follow ``text``.

        Drafts after longer matches come first, newer ones before older ones. No draft is a prefix of an earlier draft.
        """
        drafts: list[Draft] = []
        for draft in self._matches(text, length) if count > 0 < length else ():
            if not any(other.tokens[: len(draft.tokens)] == draft.tokens for other in drafts):
                drafts.append(draft)
            if len(drafts) == count:
                break
        return drafts

    def _matches(self, text: list[int], length: int) -> Iterator[Draft]:
        for match_length in range(min(self.max_match_length, len(text)), 0, -1):
            for source, index in reversed(self._occurrences.get(tuple(text[-match_length:]), ())):
                tokens = source[index : index + length]
                while source is text and len(tokens) < length:  # the draft follows its own tokens past the end of the text
                    tokens.append(tokens[index + len(tokens) - len(text)])
                yield Draft(tokens, match_length)
