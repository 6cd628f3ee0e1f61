"""A question with known answers, a prompt of a given length, and the score of an answer by string match."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import Error

if TYPE_CHECKING:
    import tokenizers

FILLER = ("The grass is green.", "The sky is blue.", "The sun is yellow.", "Here we go.", "There and back again.")
"""Sentences around a needle: those of the pass key task (arXiv:2305.16300, sec. 4.2), which RULER uses too."""


@dataclass(frozen=True)
class Example:
    """One question.

    Attributes:
        prompt: the text that the model reads. It ends where the answer begins.
        answers: the strings that a right answer contains.
    """

    prompt: str
    answers: tuple[str, ...]


def string_match(text: str, answers: Sequence[str]) -> float:
    """Return the share of ``answers`` that ``text`` contains, ignoring case (RULER, ``string_match_all``).

    The order of the answers and other words between them do not count.
    """
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


def count_tokens(tokenizer: "tokenizers.Tokenizer", text: str) -> int:
    """Return the number of tokens of a prompt, with the bos token if the tokenizer adds one."""
    return len(tokenizer.encode(text).ids)


def fit_length(
    tokenizer: "tokenizers.Tokenizer", length: int, build: Callable[[int], str], first: int = 0, last: int | None = None
) -> tuple[str, int]:
    """Return the prompt with as many units of filler as fit into ``length`` tokens, and the number of units.

    The returned number n fits, and n + 1 does not fit or is more than ``last``.

    Args:
        tokenizer: the tokenizer.
        length: maximum number of tokens of the prompt.
        build: function that returns the prompt with n units of filler.
        first: smallest number of units.
        last: largest number of units; None for no limit.

    Raises:
        Error: the prompt with ``first`` units does not fit.
    """
    shortest = count_tokens(tokenizer, build(first))
    if shortest > length:
        raise Error(f"a prompt has at most {length} tokens; expected at least {shortest}, the shortest prompt of this task")
    fits, step = first, 1
    while last is None or fits < last:  # double the step, so that few prompts are built
        n = fits + step if last is None else min(fits + step, last)
        if count_tokens(tokenizer, build(n)) > length:
            break
        fits, step = n, 2 * step
    else:
        return build(fits), fits
    too_many = n
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if count_tokens(tokenizer, build(middle)) > length:
            too_many = middle
        else:
            fits = middle
    return build(fits), fits
