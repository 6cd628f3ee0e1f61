"""Questions about long documents: SQuALITY and QASPER, as they were published, and how answers to them are scored.

SQuALITY (arXiv:2205.11465; nyu-mll/SQuALITY@dc08d4f, data/v1-3/txt/*.jsonl): a story a line, with questions and several answers
each. QASPER (arXiv:2105.03011; qasper-dev-v0.3.json): an object of papers by id. Scores as the SCROLLS benchmark has them
(arXiv:2201.03533): ROUGE without stemming, token F1 of normalized words; of several references the best counts.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Error
from ..storage.files import read_bytes

PROMPTS = {
    "squality": "\nAnswer the question in a paragraph.\nQuestion: {question}\nAnswer:",
    "qasper": (
        "\nAnswer the question as concisely as you can, using a single phrase or sentence if possible. If the question cannot "
        'be answered based on the information in the article, write "unanswerable". If the question is a yes/no question, '
        'answer "yes", "no", or "unanswerable".\nQuestion: {question}\nAnswer:'
    ),
}
"""What follows the document: the words of the paper's table 4, QASPER's as ZeroSCROLLS has them."""


@dataclass(frozen=True)
class Question:
    """One question, ``task`` squality or qasper; questions of one document share its ``name``."""

    task: str
    name: str
    number: int
    document: str
    question: str
    references: tuple[str, ...]

    @property
    def tail(self) -> str:
        """What stands between the document and the answer."""
        return PROMPTS[self.task].format(question=self.question)

    def score(self, answer: str) -> float:
        """0 … 100: the geometric mean of ROUGE-1, -2 and -L, or F1."""
        return rouge(answer, self.references) if self.task == "squality" else f1(answer, self.references)


def read_questions(path: Path) -> list[Question]:
    """All questions of a published file: ``.jsonl`` is SQuALITY's, ``.json`` QASPER's.

    Raises:
        Error: no such file, another ending, something else in it.
    """
    readers = {".jsonl": _squality, ".json": _qasper}
    if path.suffix not in readers:
        raise Error(f"{path} is no data of SQuALITY (.jsonl) or QASPER (.json)")
    try:
        found = readers[path.suffix](read_bytes(path).decode())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as wrong:
        if isinstance(wrong, Error):
            raise
        raise Error(f"{path} is not as SQuALITY or QASPER published it ({type(wrong).__name__}: {wrong!s:.100})") from None
    if not found:
        raise Error(f"{path} has no question")
    return found


def _squality(text: str) -> list[Question]:
    found = []
    for line in filter(str.strip, text.split("\n")):
        story = json.loads(line)
        name = _text(story["metadata"]["passage_id"])
        for i, asked in enumerate(story["questions"]):
            answers = tuple(_text(response["response_text"]) for response in asked["responses"])
            found.append(Question("squality", name, i, _text(story["document"]), _text(asked["question_text"]), answers))
    return found


def _qasper(text: str) -> list[Question]:
    found = []
    for name, paper in json.loads(text).items():
        parts = [paper["title"], paper["abstract"]]
        for section in paper["full_text"]:
            parts += [section["section_name"] or "", *section["paragraphs"]]
        document = "\n".join(part for part in map(_text, parts) if part)
        for i, asked in enumerate(paper["qas"]):
            answers = tuple(_answer(given["answer"]) for given in asked["answers"])
            found.append(Question("qasper", name, i, document, _text(asked["question"]), answers))
    return found


def _answer(given: dict[str, Any]) -> str:
    """One annotator's answer in words (as allenai/qasper-led-baseline@09208f8, ``dataset_reader.py``)."""
    if given["unanswerable"]:
        return "Unanswerable"
    if given["yes_no"] is not None:
        return "Yes" if given["yes_no"] else "No"
    return ", ".join(map(_text, given["extractive_spans"])) or _text(given["free_form_answer"])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def rouge(answer: str, references: Sequence[str]) -> float:
    """The geometric mean of the F-measures of ROUGE-1, -2 and -L, each of the best reference, 0 … 100."""
    from rouge_score.rouge_scorer import RougeScorer  # deferred: the package is an extra

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(reference, answer) for reference in references]
    product = 1.0
    for kind in ("rouge1", "rouge2", "rougeL"):
        product *= max(score[kind].fmeasure for score in scores)
    return 100 * product ** (1 / 3)


def check_rouge() -> None:
    """Refuse, before any work, to score without the scorer.

    Raises:
        Error: the package is not there.
    """
    try:
        import rouge_score  # noqa: F401
    except ImportError:
        raise Error("the package rouge-score is not installed; pip install 'msrnn[eval]'") from None


def f1(answer: str, references: Sequence[str]) -> float:
    """The token F1 of the best reference, 0 … 100."""
    return 100 * max(_f1(_words(answer), _words(reference)) for reference in references)


def _f1(found: Counter[str], expected: Counter[str]) -> float:
    same = (found & expected).total()
    return 2 * same / (found.total() + expected.total()) if same else 0.0


def _words(text: str) -> Counter[str]:
    """Lower case, no punctuation, no articles."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return Counter(re.sub(r"\b(a|an|the)\b", " ", plain).split())
