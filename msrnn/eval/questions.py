"""Questions about long documents (SQuALITY and QASPER, in their published files) and the scores of answers.

SQuALITY (arXiv:2205.11465; nyu-mll/SQuALITY@dc08d4f, data/v1-3/txt/*.jsonl) has one story per line, with several questions and
several answers to each. QASPER (arXiv:2105.03011; qasper-dev-v0.3.json) is an object of papers by id. The scores are those of
the SCROLLS benchmark (arXiv:2201.03533): ROUGE without stemming, and token F1 of normalized words; the best reference counts.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Error, missing_package
from ..storage.files import read_bytes

PROMPTS = {
    "squality": "\nAnswer the question in a paragraph.\nQuestion: {question}\nAnswer:",
    "qasper": (
        "\nAnswer the question as concisely as you can, using a single phrase or sentence if possible. If the question cannot "
        'be answered based on the information in the article, write "unanswerable". If the question is a yes/no question, '
        'answer "yes", "no", or "unanswerable".\nQuestion: {question}\nAnswer:'
    ),
}
"""Text after the document: table 4 of the paper; for QASPER the version of ZeroSCROLLS."""


@dataclass(frozen=True)
class Question:
    """One question; ``task`` is squality or qasper, ``name`` the name of the document, ``number`` counts its questions."""

    task: str
    name: str
    number: int
    document: str
    question: str
    references: tuple[str, ...]

    @property
    def prompt_suffix(self) -> str:
        """The text between the document and the answer."""
        return PROMPTS[self.task].format(question=self.question)

    def score(self, answer: str) -> float:
        """Return the score, 0 to 100: the geometric mean of ROUGE-1, -2 and -L, or F1."""
        return rouge(answer, self.references) if self.task == "squality" else f1(answer, self.references)


def read_questions(path: Path) -> list[Question]:
    """Return all questions of a published file: ``.jsonl`` for SQuALITY, ``.json`` for QASPER.

    Raises:
        Error: the file is missing, has another ending, or is not in the published format.
    """
    readers = {".jsonl": _squality, ".json": _qasper}
    if path.suffix not in readers:
        raise Error(f"--data is {path}; expected a .jsonl file of SQuALITY or a .json file of QASPER")
    try:
        found = readers[path.suffix](read_bytes(path).decode())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, Error):
            raise
        raise Error(f"{path} is not in the format of SQuALITY or QASPER ({type(error).__name__}: {error!s:.100})") from None
    if not found:
        raise Error(f"{path} has no question")
    return found


def _squality(text: str) -> list[Question]:
    found = []
    for line in filter(str.strip, text.split("\n")):
        story = json.loads(line)
        name = _text(story["metadata"]["passage_id"])
        for i, item in enumerate(story["questions"]):
            answers = tuple(_text(response["response_text"]) for response in item["responses"])
            found.append(Question("squality", name, i, _text(story["document"]), _text(item["question_text"]), answers))
    return found


def _qasper(text: str) -> list[Question]:
    found = []
    for name, paper in json.loads(text).items():
        parts = [paper["title"], paper["abstract"]]
        for section in paper["full_text"]:
            parts += [section["section_name"] or "", *section["paragraphs"]]
        document = "\n".join(part for part in map(_text, parts) if part)
        for i, item in enumerate(paper["qas"]):
            answers = tuple(_answer(answer["answer"]) for answer in item["answers"])
            found.append(Question("qasper", name, i, document, _text(item["question"]), answers))
    return found


def _answer(fields: dict[str, Any]) -> str:
    """Return the answer of one annotator as text (as allenai/qasper-led-baseline@09208f8, ``dataset_reader.py``)."""
    if fields["unanswerable"]:
        return "Unanswerable"
    if fields["yes_no"] is not None:
        return "Yes" if fields["yes_no"] else "No"
    return ", ".join(map(_text, fields["extractive_spans"])) or _text(fields["free_form_answer"])


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a string")
    return value


def rouge(answer: str, references: Sequence[str]) -> float:
    """Return the geometric mean of the F-measures of ROUGE-1, -2 and -L, each for its best reference, 0 to 100."""
    from rouge_score.rouge_scorer import RougeScorer  # deferred, because the package is an extra

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(reference, answer) for reference in references]
    product = 1.0
    for name in ("rouge1", "rouge2", "rougeL"):
        product *= max(score[name].fmeasure for score in scores)
    return 100 * product ** (1 / 3)


def check_rouge() -> None:
    """Check, before any work, that the package rouge-score, which SQuALITY needs, is installed.

    Raises:
        Error: the package is missing.
    """
    try:
        import rouge_score  # noqa: F401
    except ImportError:
        raise missing_package("rouge-score", "eval") from None


def f1(answer: str, references: Sequence[str]) -> float:
    """Return the token F1 for the best reference, 0 to 100."""
    return 100 * max(_f1(_words(answer), _words(reference)) for reference in references)


def _f1(found: Counter[str], expected: Counter[str]) -> float:
    same = (found & expected).total()
    return 2 * same / (found.total() + expected.total()) if same else 0.0


def _words(text: str) -> Counter[str]:
    """Return the words in lower case, without punctuation and articles."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return Counter(re.sub(r"\b(a|an|the)\b", " ", plain).split())
