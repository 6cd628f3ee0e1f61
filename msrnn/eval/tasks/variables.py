"""Variable tracking: which variables have a value, through assignments of one variable to another (RULER, vt)."""

import random
import string
from collections.abc import Callable
from typing import TYPE_CHECKING

from .difficulty import Difficulty
from .example import FILLER, Example, fit_length
from .word_list import NOUNS

if TYPE_CHECKING:
    import tokenizers

TASK = "Memorize and track the chains of variable assignments hidden in the text below.\n\n"
QUESTION = (
    "\n\nQuestion: Find all variables that are assigned the value {value} in the text above.\n"
    "Answer: The {n} variables that are assigned the value {value} are:"
)
LETTERS, SHOWN_LETTERS = 5, 3
"""Letters of a name in the question, and in the solved example before it."""


def variables(
    tokenizer: "tokenizers.Tokenizer", length: int, depth: float, rng: random.Random, difficulty: Difficulty
) -> Example:
    """Return a solved example, then a chain of assignments at random places of repeated sentences, in their order.

    The chain is ``VAR A = 12345``, ``VAR B = VAR A`` and so on. The answers are its names. A unit of filler is one sentence.

    Args:
        tokenizer, length: as for :func:`~msrnn.eval.tasks.example.fit_length`.
        depth: ignored; the assignments are at random depths.
        rng: source of names, values and depths.
        difficulty: the number of hops, and the kind of names.

    Raises:
        Error: ``length`` is too short.
    """
    shown, names = _question(rng, SHOWN_LETTERS, difficulty)
    solved = f"{shown(2 * len(FILLER))} {' '.join(names)}\n\n\n"
    asked, names = _question(rng, LETTERS, difficulty)
    text, _ = fit_length(tokenizer, length, lambda n: solved + asked(n))
    return Example(text, tuple(names))


def _question(rng: random.Random, letters: int, difficulty: Difficulty) -> tuple[Callable[[int], str], list[str]]:
    """Return the question as a function of the number of sentences, and the names of the chain."""
    names = list[str]()
    while len(names) <= difficulty.hops:
        name = rng.choice(NOUNS) if difficulty.word_names else "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names and name != "VAR":
            names.append(name)
    value = rng.randrange(10000, 100000)
    sources = [str(value), *(f"VAR {name}" for name in names)]
    places = sorted(rng.random() for _ in names)

    def build(n: int) -> str:
        parts = [(i + 0.5, FILLER[i % len(FILLER)]) for i in range(n)]
        for place, name, source in zip(places, names, sources, strict=False):
            parts.append((float(int(place * (n + 1))), f"VAR {name} = {source}."))
        context = " ".join(text for _, text in sorted(parts, key=lambda item: item[0]))
        return TASK + context + QUESTION.format(value=value, n=len(names))

    return build, names
