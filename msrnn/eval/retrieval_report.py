"""Tables and figures of the retrieval experiment."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..reporting.report import Curves, HeatMaps, Report, Table
from ..reporting.statistics import mean, paired
from .conditions import by_condition, condition_name, has_several_sizes, is_published
from .mean_curves import mean_curves
from .tasks.example import string_match


@dataclass(frozen=True)
class RetrievalResult:
    """One answer.

    Attributes:
        operator, size: the condition.
        task, length, depth, number: the question, as in :class:`~msrnn.eval.retrieval.Question`.
        answers: the strings of the right answer.
        text: the text that the model wrote.
    """

    operator: str
    size: int | None
    task: str
    length: int
    depth: float | None
    number: int
    answers: Sequence[str]
    text: str

    @property
    def score(self) -> float:
        """Share of the answers that the text contains, 0 to 1."""
        return string_match(self.text, self.answers)

    @property
    def question(self) -> tuple[str, int, float | None, int]:
        """Task, length, depth and number, which identify the question."""
        return self.task, self.length, self.depth, self.number


def report(results: Sequence[RetrievalResult]) -> Report:
    """Return tables of the scores by length and of the differences from the unbounded model, and figures.

    Args:
        results: results of the same questions under each condition, and of the unbounded model among them.
    """
    lengths = list(dict.fromkeys(r.length for r in results))
    tables = [_scores([r for r in results if r.length == n], f"Score of {n:,} tokens") for n in lengths]
    curves = mean_curves("score of all tasks", "score", results, lambda r: r.score)
    figures: dict[str, Curves | HeatMaps] = {"retrieval.png": curves}
    for task in dict.fromkeys(r.task for r in results if r.depth is not None):
        figures[f"{task}.png"] = _heat_maps([r for r in results if r.task == task], task)
    return Report([*tables, _differences(results)], [{**vars(r), "score": r.score} for r in results], figures)


def _scores(results: Sequence[RetrievalResult], title: str) -> Table:
    tasks = list(dict.fromkeys(r.task for r in results))
    rows = []
    for (operator, size), group in by_condition(results).items():
        scores = [mean([r.score for r in group if r.task == task]).value for task in tasks]
        rows.append([condition_name(operator, size), *(f"{score:.0%}" for score in (*scores, mean(scores).value))])
    counts = ", ".join(f"{len({r.question for r in results if r.task == task})} of {task}" for task in tasks)
    note = f"Questions: {counts}. The score is the share of the right answers that the text contains."
    found = {(r.operator, r.size) for r in results if r.size is not None and r.size >= r.length}
    if large := sorted({size for operator, size in found if size is not None and not has_several_sizes(operator, size)}):
        note += (
            f" With {', '.join(f'{n:,}' for n in large)} rows H holds the whole prompt, so no row is evicted before the answer."
        )
    return Table(title, ["operator", *tasks, "mean"], rows, note)


def _differences(results: Sequence[RetrievalResult]) -> Table:
    tasks, groups = list(dict.fromkeys(r.task for r in results)), by_condition(results)
    unbounded = next(group for (operator, _), group in groups.items() if is_published(operator))
    rows = []
    for (operator, size), group in groups.items():
        if group is not unbounded:
            cells = []
            for chosen in (*([task] for task in tasks), tasks):
                values, others = (
                    [100 * r.score for r in sorted(g, key=lambda r: str(r.question)) if r.task in chosen]
                    for g in (group, unbounded)
                )
                cells.append(f"{paired(values, others):+.0f}")
            rows.append([condition_name(operator, size), *cells])
    note = "Points of 100, mean ± standard error of the differences per question, over all lengths."
    return Table("Difference from the unbounded model", ["operator", *tasks, "all"], rows, note)


def _heat_maps(results: Sequence[RetrievalResult], task: str) -> HeatMaps:
    lengths, depths = sorted({r.length for r in results}), sorted({r.depth for r in results if r.depth is not None})
    panels = {
        condition_name(operator, size): torch.tensor(
            [[mean([r.score for r in group if (r.length, r.depth) == (n, d)]).value for d in depths] for n in lengths]
        )
        for (operator, size), group in by_condition(results).items()
    }
    ticks = ([f"{d:g}" for d in depths], [str(n) for n in lengths])
    return HeatMaps(task, "depth, share of the text", "prompt, tokens", panels, "score", ticks=ticks)
