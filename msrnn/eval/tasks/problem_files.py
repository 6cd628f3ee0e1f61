"""Problems from files: GSM8K (arXiv:2110.14168) and MATH (arXiv:2103.03874), one JSON object per line."""

import json
import re
from pathlib import Path

from ...errors import Error
from ...storage.files import read_bytes
from .problem import Problem, find_answer

FIELDS = (("question", "answer"), ("problem", "solution"))
"""Names of the two fields, in GSM8K and in MATH."""


def read_problems(path: Path) -> list[Problem]:
    r"""Return the problems of a file. A line has ``question`` and ``answer``, or ``problem`` and ``solution``.

    The answer of a problem stands after ``####``, or in the last ``\boxed{}``. Annotations for a calculator (``<<1+1=2>>``) and
    blank lines are removed from the solutions.

    Raises:
        Error: the file cannot be read, is not in this format, or has no problem.
    """
    found = []
    for n, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            found.append(_problem(line, f"{path}, line {n},"))
    if not found:
        raise Error(f"{path} has no problem; expected one JSON object per line")
    return found


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise Error(f"{path} is not UTF-8 ({error.reason})") from None


def _problem(line: str, where: str) -> Problem:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Error(f"{where} is not JSON ({error!s:.100})") from None
    names = next((names for names in FIELDS if isinstance(record, dict) and set(names) <= record.keys()), None)
    if names is None or not all(isinstance(record[name], str) for name in names):
        raise Error(f"{where} has no question and answer; expected the strings question and answer, or problem and solution")
    if any(re.search("[\ud800-\udfff]", record[name]) for name in names):
        raise Error(f"{where} has half of a surrogate pair; expected valid Unicode")
    question, solution = (re.sub(r"\n\s*\n", "\n", record[name].strip()) for name in names)
    solution = re.sub(r"<<[^<>]*>>", "", solution)
    answer = find_answer(solution)
    if not answer:
        raise Error(rf"{where} has no answer; expected it after #### or in \boxed{{}}")
    return Problem(question, solution, answer)
