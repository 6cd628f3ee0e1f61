"""Sizes of the retrieval tasks: RULER's, and smaller ones for small models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Difficulty:
    """Numbers that decide how hard the tasks are.

    Attributes:
        digits: digits of the number in a needle.
        distractors: other needles, with other keys and numbers, in ``multikey``; None: every line of the text is one.
        hops: assignments of one variable to another.
        word_names: names of variables are words; otherwise random capital letters.
        common: words to find in ``common-words``.
        ratio: occurrences of a common word for each occurrence of another word.
        frequent: words to find in ``frequent-words``.
    """

    digits: int
    distractors: int | None
    hops: int
    word_names: bool
    common: int
    ratio: int
    frequent: int


DIFFICULTIES = {
    "ruler": Difficulty(digits=7, distractors=None, hops=4, word_names=False, common=10, ratio=6, frequent=3),
    "small": Difficulty(digits=5, distractors=3, hops=1, word_names=True, common=3, ratio=6, frequent=3),
}
"""By name. ``ruler``: the numbers of RULER for texts below 4,096 tokens (``synthetic.yaml``)."""
