"""Results of an experiment: tables, records and descriptions of figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with padded cells. The first column is left-aligned, the other columns are right-aligned."""
    widths = [max(4, *map(len, column)) for column in zip(columns, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in (columns, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True)
class Table:
    """A table of formatted cells; ``note`` explains its content."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        """Return the table as Markdown."""
        parts = (f"**{self.title}**" if self.title else "", markdown_table(self.columns, self.rows), self.note)
        return "\n\n".join(filter(None, parts))


@dataclass(frozen=True)
class Curves:
    """A line plot.

    Attributes:
        title, x_label, y_label: texts of the figure.
        lines: by name, the points ``(x, y, error)``; an error of NaN has no bar.
        horizontal_lines, vertical_lines: by name, the y or x coordinate of a reference line.
        log_x, log_y: True for a logarithmic axis; x is labelled at the points, y with short numbers such as 0.02 and 0.05.
        steps: True: each value holds until the next point, and the lines are drawn as steps, without errors.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[tuple[float, float, float]]]
    horizontal_lines: Mapping[str, float] = field(default_factory=dict)
    log_x: bool = True
    log_y: bool = False
    vertical_lines: Mapping[str, float] = field(default_factory=dict)
    steps: bool = False


@dataclass(frozen=True)
class Dots:
    """Values with error bars along a common axis: one line per name, one dot per series.

    Attributes:
        title, x_label: texts of the figure.
        series: by name of the series, by name of the line, value and error; an error of NaN has no bar.
    """

    title: str
    x_label: str
    series: Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps side by side.

    Attributes:
        title, x_label, y_label, colour_label: texts of the figure.
        panels: by name, values ``(height, width)`` from 0 to ``maximum``; high values are dark.
        maximum: the value of the darkest colour.
        extent: largest coordinate of both axes; None counts pixels.
        ticks: names of the columns and of the rows; the values are then written into the cells.
        prompt: if positive, a horizontal line below row ``prompt - 1`` marks the end of the prompt.
        first_token: True: the first column of the panels is the first token once more. It is drawn as a strip to the left of
            the map, because one column of a long text is too narrow to be seen, and many operators retain the first token.
    """

    title: str
    x_label: str
    y_label: str
    panels: Mapping[str, Tensor]
    colour_label: str
    maximum: float = 1.0
    extent: float | None = None
    ticks: tuple[Sequence[str], Sequence[str]] | None = None
    prompt: int = 0
    first_token: bool = False


@dataclass(frozen=True)
class SideBySide:
    """Heat maps, and curves to the right of them, as one figure with ``title``."""

    title: str
    maps: HeatMaps
    curves: Curves


@dataclass(frozen=True)
class Report:
    """All results of an experiment; ``figures`` are keyed by file name."""

    tables: Sequence[Table]
    records: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Curves | Dots | HeatMaps | SideBySide] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return all tables as Markdown."""
        return "\n\n".join(map(str, self.tables)) + "\n"


def format_significant(value: float, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits, without an exponent, and with all digits before the point."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - whole)}f}"
