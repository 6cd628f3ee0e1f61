"""Aggregation: the most common words of a list (RULER, cwe), and the most frequent words of a coded text (RULER, fwe)."""

import heapq
import itertools
import random
import string
from typing import TYPE_CHECKING

from .difficulty import Difficulty
from .example import Example, fit_length
from .word_list import WORDS

if TYPE_CHECKING:
    import tokenizers

COMMON = (
    "Below is a numbered list of words. Some words appear more often than others. Memorize the ones that appear most often.\n\n"
    "{words}\n\nQuestion: What are the {n} most common words in the list above?\n"
    "Answer: The {n} words that appear most often in the list are:"
)
FREQUENT = (
    "Read the coded text below and track how often each coded word appears. Ignore the dots '...'.\n\n"
    "{words}\n\nQuestion: What are the {n} most frequent coded words in the text above?\n"
    "Answer: The {n} most frequent coded words are:"
)
SHOWN_WORDS, SHOWN_RATIO = 10, 3
"""Rare words and occurrences of a common word in the solved example."""
CODE_LETTERS, EXPONENT, NOISE = 6, 2.0, "..."


def common_words(
    tokenizer: "tokenizers.Tokenizer", length: int, depth: float, rng: random.Random, difficulty: Difficulty
) -> Example:
    """Return a solved example, then a shuffled numbered list of common and rare words.

    A common word occurs ``difficulty.ratio`` times as often as a rare word. A rare word occurs once, or more often if
    ``length`` needs more words than there are. A unit of filler is one rare word.

    Args:
        tokenizer, length: as for :func:`~msrnn.eval.tasks.example.fit_length`.
        depth: ignored; the words are at random places.
        rng: source of the words and their order.
        difficulty: the number and the ratio of common words.

    Raises:
        Error: ``length`` is too short.
    """
    words = rng.sample(WORDS, len(WORDS))
    n = difficulty.common
    answers, known, others, rare = words[:n], words[n : 2 * n], words[2 * n : 2 * n + SHOWN_WORDS], words[2 * n + SHOWN_WORDS :]
    solved = _list(known, others, SHOWN_RATIO, 1, rng.random()) + _numbered(known) + "\n\n\n"
    seed = rng.random()
    for times in itertools.count(1):

        def build(n: int, times: int = times) -> str:
            return solved + _list(answers, rare[:n], difficulty.ratio, times, seed)

        text, n = fit_length(tokenizer, length, build, last=len(rare))
        if n < len(rare):
            return Example(text, tuple(answers))
    raise AssertionError  # the loop ends by a return


def _list(common: list[str], rare: list[str], ratio: int, times: int, seed: float) -> str:
    entries = common * (ratio * times) + rare * times
    random.Random(seed).shuffle(entries)
    return COMMON.format(words=_numbered(entries).lstrip(), n=len(common))


def _numbered(words: list[str]) -> str:
    return "".join(f" {i}. {word}" for i, word in enumerate(words, 1))


def frequent_words(
    tokenizer: "tokenizers.Tokenizer", length: int, depth: float, rng: random.Random, difficulty: Difficulty
) -> Example:
    """Return a shuffled text of coded words with frequencies proportional to 1/k² (Zipf). The most frequent one is noise.

    Each further word is the code with the highest quotient of its share and its number of occurrences + 1 (the method of
    D'Hondt), so a unit of filler is one word. The text is long enough that the last answer occurs more often than the
    code after it.

    Args:
        tokenizer, length: as for :func:`~msrnn.eval.tasks.example.fit_length`.
        depth: ignored; the words are at random places.
        rng: source of the codes and their order.
        difficulty: the number of frequent words.

    Raises:
        Error: ``length`` is too short.
    """
    codes, seed = [NOISE], rng.random()
    while len(codes) < 2 + max(difficulty.frequent, int(length**0.5)):  # code k occurs from about k² words on
        code = "".join(rng.choices(string.ascii_lowercase, k=CODE_LETTERS))
        if code not in codes:
            codes.append(code)
    order = _zipf_order(codes, max(length + 1, 4 * (difficulty.frequent + 2) ** 2))  # long enough for ``first``
    answers = codes[1 : difficulty.frequent + 1]
    last, after = answers[-1], codes[difficulty.frequent + 1]
    first = next(n for n in range(len(order)) if 1 < order[:n].count(last) > order[:n].count(after) > 0)

    def build(n: int) -> str:
        words = order[:n]
        random.Random(seed).shuffle(words)
        return FREQUENT.format(words=" ".join(words), n=difficulty.frequent)

    text, _ = fit_length(tokenizer, length, build, first, len(order))
    return Example(text, tuple(answers))


def _zipf_order(codes: list[str], n: int) -> list[str]:
    """Return n codes such that every prefix has frequencies as close to 1/k² as whole numbers allow."""
    queue = [(k**EXPONENT, k, 1) for k in range(1, len(codes) + 1)]  # inverse quotient, code, occurrence
    heapq.heapify(queue)
    order = []
    for _ in range(n):
        _, k, occurrence = heapq.heappop(queue)
        order.append(codes[k - 1])
        heapq.heappush(queue, (k**EXPONENT * (occurrence + 1), k, occurrence + 1))
    return order
