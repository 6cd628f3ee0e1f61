"""Sizes of the retrieval tasks: RULER's, and smaller ones for small models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Numbers that decide how hard the tasks are.

    Attributes:
        digits: digits of the number in a needle.
        distractors: other needles, with other keys and numbers, in ``multikey``; None: every line of the text is one.
        chains, hops: chains of variables, and assignments of one variable to another in a chain.
        word_names: names of variables are words; otherwise random capital letters.
        common: words to find in ``common-words``.
        ratio: occurrences of a common word for each occurrence of another word.
        frequent: words to find in ``frequent-words``.
    """

    digits: int
    distractors: int | None
    chains: int
    hops: int
    word_names: bool
    common: int
    ratio: int
    frequent: int


FORMS = {
    "ruler": Form(digits=7, distractors=None, chains=1, hops=4, word_names=False, common=10, ratio=6, frequent=3),
    "small": Form(digits=5, distractors=3, chains=1, hops=1, word_names=True, common=3, ratio=6, frequent=3),
}
"""By name. ``ruler``: the numbers of RULER for texts below 4,096 tokens (``synthetic.yaml``)."""
