"""Generated problems with a long answer that a small model can write: counting down, and copying a list of numbers.

A step of the count depends on the step before it. A step of the copy depends on a place of the question that moves through the
list. The whole answer stands after the mark, so every number has to be right.
"""

import random
from collections.abc import Sequence

from .problem import MARK, Problem

STARTS = 20
"""Numbers that a count of at least ``steps`` steps can start with."""


def count(rng: random.Random, steps: int) -> Problem:
    """Return a count from ``steps`` to ``steps + 19`` down to 0.

    Args:
        rng: source of the first number.
        steps: smallest number of steps, at least 1.
    """
    first = rng.randrange(steps, steps + STARTS)
    return _written(f"Count down from {first} to 0.", range(first, -1, -1))


def copy(rng: random.Random, steps: int) -> Problem:
    """Return a list of ``steps`` numbers of three digits, to be repeated.

    The mark stands before the list of the question too. Without it SmolLM2-135M begins the copy with another number.

    Args:
        rng: source of the numbers.
        steps: length of the list, at least 1.
    """
    numbers = [rng.randint(100, 999) for _ in range(steps)]
    return _written(f"Repeat: {MARK} {_listed(numbers)}.", numbers)


def _written(question: str, numbers: Sequence[int]) -> Problem:
    return Problem(question, f"{MARK} {_listed(numbers)}.", _listed(numbers))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
