"""Needles: a sentence with a number, in filler, between other needles, or in a text of the user (RULER, niah_*)."""

import random
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ...errors import Error, counted
from .difficulty import Difficulty
from .example import FILLER, Example, count_tokens, fit_length
from .word_list import ADJECTIVES, NOUNS

if TYPE_CHECKING:
    import tokenizers

TASK = "A special magic number is hidden in the text below. Memorize it. I will ask you for it afterwards.\n\n"
NEEDLE = "One of the special magic numbers for {key} is: {number}."
QUESTION = (
    "\n\nWhat is the special magic number for {key} in the text above? The special magic number for {key} in the text above is"
)
SENTENCE_END = re.compile(r"[.!?][\"'”’)]*$")


class Sentences(NamedTuple):
    """The words of a text, and the indices of the words that begin a sentence."""

    words: list[str]
    starts: list[int]

    @classmethod
    def of(cls, text: str) -> "Sentences":
        """Split a text at white space; a sentence ends with a full stop, a question mark or an exclamation mark."""
        words = text.split()
        return cls(words, [0, *(i + 1 for i, word in enumerate(words[:-1]) if SENTENCE_END.search(word))])


def needle(tokenizer: "tokenizers.Tokenizer", length: int, depth: float, rng: random.Random, difficulty: Difficulty) -> Example:
    """Return one needle in repeated sentences. A unit of filler is one sentence.

    Args:
        tokenizer, length: as for :func:`~msrnn.eval.tasks.example.fit_length`.
        depth: share of the filler before the needle, 0 to 1.
        rng: source of the key and the number.
        difficulty: the number of digits.

    Raises:
        Error: ``length`` is too short.
    """
    ((key, number),) = _pairs(rng, 1, difficulty.digits)
    place = (depth, _sentence(key, number))
    return _fit(tokenizer, length, key, number, lambda n: _insert(_filler(n), [place]))[0]


def multikey(
    tokenizer: "tokenizers.Tokenizer", length: int, depth: float, rng: random.Random, difficulty: Difficulty
) -> Example:
    """Return a needle among needles with other keys and numbers.

    The other needles are at random depths of the filler, or they are the filler, one per line, if ``difficulty.distractors`` is
    None.

    Args:
        tokenizer, length, depth, rng, difficulty: as for :func:`needle`.

    Raises:
        Error: ``length`` is too short, or needs more needles than there are keys.
    """
    shortest = count_tokens(tokenizer, "\n" + _sentence("a", "1" * difficulty.digits)) - count_tokens(tokenizer, "")
    wanted = length // shortest + 1 if difficulty.distractors is None else difficulty.distractors
    (key, number), *others = _pairs(rng, 1 + wanted, difficulty.digits)
    place, lines = (depth, _sentence(key, number)), [_sentence(*pair) for pair in others]
    if difficulty.distractors is None:
        return _fit(tokenizer, length, key, number, lambda n: _insert(lines[:n], [place], "\n"), last=len(lines))[0]
    places = [place, *((rng.random(), line) for line in lines)]
    return _fit(tokenizer, length, key, number, lambda n: _insert(_filler(n), places))[0]


def text_needle(
    tokenizer: "tokenizers.Tokenizer", length: int, depth: float, rng: random.Random, difficulty: Difficulty, text: Sentences
) -> Example:
    """Return a needle in a part of a text. A unit of filler is one word.

    The part begins at a random sentence. The needle stands after the end of a sentence, the one nearest to ``depth``.

    Args:
        tokenizer, length, depth, rng, difficulty: as for :func:`needle`.
        text: the text.

    Raises:
        Error: the text or ``length`` is too short.
    """
    words, starts = text
    begin = rng.choice([i for i in starts if len(words) - i >= length] or [0])
    part = words[begin : begin + length]
    ends = [i - begin for i in starts if begin <= i < begin + len(part)]
    ((key, number),) = _pairs(rng, 1, difficulty.digits, absent_from=" ".join(part))

    def context(n: int) -> str:
        place = min([i for i in ends if i < n] + [n], key=lambda i: (abs(i - depth * n), i))
        return " ".join([*part[:place], _sentence(key, number), *part[place:n]])

    example, n = _fit(tokenizer, length, key, number, context, last=len(part))
    if n == len(part) < length:
        raise Error(f"--text has {counted(len(words), 'word')}, too few for {counted(length, 'token')}; expected a longer text")
    return example


def _pairs(rng: random.Random, n: int, digits: int, absent_from: str = "") -> list[tuple[str, str]]:
    """Return n pairs of a key and a number. All keys and all numbers are distinct, and none is in ``absent_from``."""
    most = len(ADJECTIVES) * len(NOUNS) // 2
    if n > most:
        raise Error(f"the text needs {n} needles; expected at most {most}, so that all keys are distinct")
    text = absent_from.lower()
    keys = _distinct(n, lambda: f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}", text)
    numbers = _distinct(n, lambda: str(rng.randrange(10 ** (digits - 1), 10**digits)), text)
    return list(zip(keys, numbers, strict=True))


def _distinct(n: int, draw: Callable[[], str], text: str) -> list[str]:
    """Return n distinct results of ``draw`` that are not in ``text``."""
    found = dict[str, None]()
    while len(found) < n:
        if (new := draw()) not in text:
            found[new] = None
    return list(found)


def _sentence(key: str, number: str) -> str:
    return NEEDLE.format(key=key, number=number)


def _filler(n: int) -> list[str]:
    return [FILLER[i % len(FILLER)] for i in range(n)]


def _insert(lines: Sequence[str], inserted: Sequence[tuple[float, str]], separator: str = " ") -> str:
    """Return the lines as one text, with each of the ``inserted`` lines after its share of them."""
    placed = [(float(i), line) for i, line in enumerate(lines)]
    placed += [(round(depth * len(lines)) - 0.5, line) for depth, line in inserted]
    return separator.join(line for _, line in sorted(placed, key=lambda item: item[0]))


def _fit(
    tokenizer: "tokenizers.Tokenizer",
    length: int,
    key: str,
    number: str,
    context: Callable[[int], str],
    last: int | None = None,
) -> tuple[Example, int]:
    text, n = fit_length(tokenizer, length, lambda n: TASK + context(n) + QUESTION.format(key=key), last=last)
    return Example(text, (number,)), n
