"""Questions under all conditions, in batches of questions of similar length. A stopped run resumes from its folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from ..reporting.sweep import Sweep
from .answers import Grouped, split_into_batches
from .conditions import Condition, load_results
from .inputs import EvalInputs


class Named(Grouped, Protocol):
    """A question with a ``name``, the part of the keys of its table entries after the condition."""

    @property
    def name(self) -> str: ...


Question = TypeVar("Question", bound=Named)
Result = TypeVar("Result")


def measure_questions(
    inputs: EvalInputs,
    sweep: Sweep,
    conditions: Sequence[Condition],
    questions: Sequence[Question],
    batch_size: int,
    answer: Callable[[Sequence[Question], Condition], Sequence[Any]],
    kind: Callable[..., Result],
) -> list[Result]:
    """Answer the questions that ``sweep`` does not have yet, and return the results of all of them.

    Args:
        inputs: the model.
        sweep: the finished entries.
        conditions: the conditions.
        questions: the questions.
        batch_size: maximum number of questions in a batch.
        answer: a function of a batch and a condition that returns one result, a dataclass, per question.
        kind: class of the results.
    """
    batches = split_into_batches(questions, batch_size)
    rows = {(c, i): {f"{c.key} on {q.name}": q for q in batch} for c in conditions for i, batch in enumerate(batches)}
    for (condition, i), pending in inputs.pending(sweep, rows, batch_size):
        # the whole batch again, because rounding depends on the batch
        for q, result in zip(batches[i], answer(batches[i], condition), strict=True):
            if (key := f"{condition.key} on {q.name}") in pending:
                sweep[key] = asdict(result)
    return load_results(kind, sweep, rows)
