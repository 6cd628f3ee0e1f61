"""Problems with a solution in steps, few-shot prompts of them, and the answer in a solution."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

MARK = "####"
"""Text before the answer of a solution, as in GSM8K."""
STOP = "\n\n"
"""Text after a solution in a prompt, which ends an answer."""
BOXED = r"\boxed{"


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        question: the question.
        solution: the steps and the answer, without blank lines.
        answer: the answer alone.
    """

    question: str
    solution: str
    answer: str


def few_shot_prompt(shots: Sequence[Problem], question: str) -> str:
    """Return the prompt: solved problems, then the question. It ends where the solution begins."""
    solved = [f"Question: {shot.question}\nAnswer: {shot.solution}{STOP}" for shot in shots]
    return "".join(solved) + f"Question: {question}\nAnswer:"


def find_answer(solution: str) -> str | None:
    r"""Return the line after the first ``####`` (GSM8K), else the content of the last ``\boxed{}`` (MATH), else None."""
    before, mark, after = solution.partition(MARK)
    if mark:
        return after.strip().split("\n")[0].strip()
    _, boxed, rest = before.rpartition(BOXED)
    depth = 1
    for i, letter in enumerate(rest if boxed else ""):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[:i].strip()
    return None


def same_answer(found: str | None, right: str) -> bool:
    """Return True if two answers are equal as numbers, or as text without white space, ``$`` and a last full stop.

    Expressions are not evaluated: ``1/2`` and ``0.5`` differ.
    """
    return found is not None and _plain(found) == _plain(right)


def _plain(answer: str) -> str | Decimal:
    text = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", re.sub(r"\s|\\?\$", "", answer)).removesuffix(".")
    return Decimal(text) if re.fullmatch(r"[-+]?\d+(\.\d+)?", text) else text
