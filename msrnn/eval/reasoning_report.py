"""Tables and figures of the reasoning experiment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..reporting.report import Report, Table
from ..reporting.statistics import mean, paired
from .conditions import by_condition, condition_name, is_published
from .mean_curves import mean_curves
from .tasks.problem import same_answer


@dataclass(frozen=True)
class ReasoningResult:
    """One answer.

    Attributes:
        operator, size: the condition.
        task, steps, number: the question, as in :class:`~msrnn.eval.reasoning.Question`.
        answer: the right answer.
        found: the answer in the text; None if there is none.
        text: the text that the model wrote.
        tokens: number of generated tokens.
        ended: True if the text ended before the maximum number of tokens.
    """

    operator: str
    size: int | None
    task: str
    steps: int | None
    number: int
    answer: str
    found: str | None
    text: str
    tokens: int
    ended: bool

    @property
    def is_right(self) -> bool:
        """True if the text has the right answer."""
        return same_answer(self.found, self.answer)

    @property
    def column(self) -> str:
        """Column of the tables: task and number of steps."""
        return self.task if self.steps is None else f"{self.task}, {self.steps}"


def report(results: Sequence[ReasoningResult], max_new_tokens: int) -> Report:
    """Return tables of accuracy and length by task, the differences from the unbounded model, and curves by size.

    Args:
        results: results of the same questions under each condition, and of the unbounded model among them.
        max_new_tokens: maximum number of tokens of an answer, for the note.
    """
    n = {column: len({r.number for r in results if r.column == column}) for column in dict.fromkeys(r.column for r in results)}
    counts = f"Questions: {', '.join(f'{count} of {column}' for column, count in n.items())}."
    per_question = "Mean ± standard error of the differences per question."
    length = f"Generated tokens, at most {max_new_tokens:,}; an answer that does not end counts with this maximum."
    tables = [
        _table("Right answers", counts, results, _right, ".0f"),
        _table(
            "Right answers, difference from the unbounded model",
            f"Points of 100. {per_question}",
            results,
            _right,
            "+.0f",
            True,
        ),
        _table("Length of the answer", length, results, _tokens, ".0f"),
        _table("Length of the answer, difference from the unbounded model", per_question, results, _tokens, "+.0f", True),
        _table("Answers that end", "In percent.", results, lambda r: 100 * r.ended, ".0f"),
    ]
    figures = {
        "reasoning-accuracy.png": mean_curves("right answers", "right answers", results, lambda r: float(r.is_right)),
        "reasoning-length.png": mean_curves("tokens of an answer", "tokens of an answer", results, _tokens),
    }
    return Report(tables, [{**vars(r), "is_right": r.is_right} for r in results], figures)


def _right(r: ReasoningResult) -> float:
    return 100 * r.is_right


def _tokens(r: ReasoningResult) -> float:
    return r.tokens


def _table(
    title: str,
    note: str,
    results: Sequence[ReasoningResult],
    value: Callable[[ReasoningResult], float],
    spec: str,
    relative: bool = False,
) -> Table:
    columns, groups = list(dict.fromkeys(r.column for r in results)), by_condition(results)
    unbounded = next(group for (operator, _), group in groups.items() if is_published(operator))
    rows = []
    for (operator, size), group in groups.items():
        if relative and group is unbounded:
            continue
        cells = []
        for chosen in (*([column] for column in columns), columns):
            values, others = ([value(r) for r in _ordered(g) if r.column in chosen] for g in (group, unbounded))
            cells.append(f"{paired(values, others):{spec}}" if relative else f"{mean(values).value:{spec}}")
        rows.append([condition_name(operator, size), *cells])
    return Table(title, ["operator", *columns, "all"], rows, note)


def _ordered(group: Sequence[ReasoningResult]) -> list[ReasoningResult]:
    return sorted(group, key=lambda r: (r.column, r.number))
