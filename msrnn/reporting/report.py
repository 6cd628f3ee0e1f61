"""What an experiment hands over: tables, records, and pictures that are not drawn yet."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Table:
    """A table of finished words; ``note`` says what stands in it and how it was made."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __str__(self) -> str:
        """As Markdown; the first column is text, the others numbers."""
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join(part for part in (f"**{self.title}**", table, self.note) if part)


@dataclass(frozen=True)
class Curves:
    """Lines: by name the points ``(x, y, spread)`` of each; ``levels`` are lines across, ``stops`` lines down."""

    title: str
    across: str
    up: str
    lines: Mapping[str, Sequence[tuple[float, float, float]]]
    levels: Mapping[str, float] = field(default_factory=dict)
    log_x: bool = True
    log_y: bool = False
    stops: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Maps:
    """Panels by name, ``(rows, columns)`` numbers from 0 to ``high`` each, dark where high. ``span`` is what both axes count up
    to, where that is not pixels; ``ticks`` name columns and rows where they are few."""

    title: str
    across: str
    down: str
    panels: Mapping[str, Tensor]
    label: str
    high: float = 1.0
    span: float | None = None
    ticks: tuple[Sequence[str], Sequence[str]] | None = None


@dataclass(frozen=True)
class Report:
    """The whole of it; pictures by the name of the file they become."""

    tables: Sequence[Table]
    records: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, Curves | Maps] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables)) + "\n"


def figures(value: float, digits: int = 3) -> str:
    """A number with so many figures, no exponent, digits before the point never cut."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else str(value)
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - whole)}f}"
