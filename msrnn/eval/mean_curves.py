"""Curves of means over questions against the size of the state, one line per operator."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..reporting.report import Curves
from ..reporting.statistics import mean
from .conditions import by_condition
from .lm import SIZE_LABEL

Result = TypeVar("Result")


def mean_curves(title: str, y_label: str, results: Sequence[Result], value: Callable[[Result], float]) -> Curves:
    """Return the means by operator and size, with standard errors over questions. Operators without a size are levels.

    Args:
        title: what the means are of; the figure adds that it shows standard errors.
        y_label: label of the axis of the means.
        results: results with the fields ``operator`` and ``size``.
        value: returns the value of a result.
    """
    lines: dict[str, list[tuple[float, float, float]]] = {}
    levels = {}
    for (operator, size), group in by_condition(results).items():
        found = mean([value(r) for r in group])
        if size is None:
            levels[operator] = found.value
        else:
            lines.setdefault(operator, []).append((size, *found))
    return Curves(f"{title}, and its standard error over questions", SIZE_LABEL, y_label, lines, levels)
