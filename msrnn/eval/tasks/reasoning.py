"""Generated problems that are solved in steps: chains of sums, and changes of a list."""

import random

from .problem import MARK, Problem
from .word_list import NOUNS

LARGEST = 99
"""Largest number in a chain of sums."""


def arithmetic(rng: random.Random, steps: int) -> Problem:
    """Return a chain of additions and subtractions of one digit. All results are from 0 to 99.

    Args:
        rng: source of the numbers.
        steps: number of operations, at least 1.
    """
    value = rng.randint(1, 20)
    question, solution = [f"Start with {value}."], list[str]()
    for _ in range(steps):
        digit = rng.randint(1, 9)
        sign = rng.choice([s for s in (1, -1) if 0 <= value + s * digit <= LARGEST])
        change = f"{'Add' if sign > 0 else 'Subtract'} {digit}"
        question.append(f"{change}.")
        solution.append(f"{change}: {value} {'+' if sign > 0 else '-'} {digit} = {value + sign * digit}.")
        value += sign * digit
    return Problem(f"{' '.join(question)} What is the result?", f"{' '.join(solution)} {MARK} {value}", str(value))


def lists(rng: random.Random, steps: int) -> Problem:
    """Return changes of a list of 3 to 5 words. The solution is the list after each change.

    Args:
        rng, steps: as for :func:`arithmetic`.
    """
    words = rng.sample(NOUNS, 4)
    question, solution = [f"The list is {', '.join(words)}"], list[str]()
    for _ in range(steps):
        kind = rng.choice([*(["add"] if len(words) < 5 else []), *(["remove"] if len(words) > 3 else []), "move"])
        if kind == "add":
            new = rng.choice([word for word in NOUNS if word not in words])
            question.append(f"Add {new} at the end")
            words = [*words, new]
        elif kind == "remove":
            question.append("Remove the first word")
            words = words[1:]
        else:
            question.append("Move the first word to the end")
            words = [*words[1:], words[0]]
        solution.append(f"{question[-1]}: {', '.join(words)}.")
    answer = ", ".join(words)
    return Problem(f"{'. '.join(question)}. What is the list?", f"{' '.join(solution)} {MARK} {answer}", answer)
