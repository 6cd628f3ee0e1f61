"""Variable tracking: which variables have a value, through assignments of one variable to another (RULER, vt)."""

import random
import string
from collections.abc import Callable
from typing import TYPE_CHECKING

from .example import FILLER, Example, fit_length
from .forms import Form
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


def variables(tokenizer: "tokenizers.Tokenizer", length: int, depth: float, rng: random.Random, form: Form) -> Example:
    """Return a solved example, then chains of assignments at random places of repeated sentences, in their order.

    A chain is ``VAR A = 12345``, ``VAR B = VAR A`` and so on. The answers are the names of the first chain. A unit of filler is
    one sentence.

    Args:
        tokenizer, length: as for :func:`~msrnn.eval.tasks.example.fit_length`.
        depth: ignored; the assignments are at random depths.
        rng: source of names, values and depths.
        form: the numbers of chains and hops, and the kind of names.

    Raises:
        Error: ``length`` is too short.
    """
    shown, names = _question(rng, SHOWN_LETTERS, form)
    solved = f"{shown(2 * len(FILLER))} {' '.join(names)}\n\n\n"
    asked, names = _question(rng, LETTERS, form)
    text, _ = fit_length(tokenizer, length, lambda n: solved + asked(n))
    return Example(text, tuple(names))


def _question(rng: random.Random, letters: int, form: Form) -> tuple[Callable[[int], str], list[str]]:
    """Return the question as a function of the number of sentences, and the names of the first chain."""
    per_chain = form.hops + 1
    names = list[str]()
    while len(names) < form.chains * per_chain:
        name = rng.choice(NOUNS) if form.word_names else "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names and name != "VAR":
            names.append(name)
    values = rng.sample(range(10000, 100000), form.chains)
    lines = list[tuple[float, str]]()
    for c, value in enumerate(values):
        chain = names[c * per_chain : (c + 1) * per_chain]
        sources = [str(value), *(f"VAR {name}" for name in chain)]
        places = sorted(rng.random() for _ in chain)
        lines += [(place, f"VAR {name} = {source}.") for place, name, source in zip(places, chain, sources, strict=False)]
    lines.sort(key=lambda item: item[0])

    def build(n: int) -> str:
        parts = [(i + 0.5, FILLER[i % len(FILLER)]) for i in range(n)]
        parts += [(float(int(place * (n + 1))), line) for place, line in lines]
        context = " ".join(text for _, text in sorted(parts, key=lambda item: item[0]))
        return TASK + context + QUESTION.format(value=values[0], n=per_chain)

    return build, names[:per_chain]
