"""What was measured, as Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .result import Row

HEADS = ("", "msrnn", "beside", "", "ratio (low … high)", "bound", "reached")


def markdown(about: Mapping[str, str], tables: Mapping[str, Sequence[Row]]) -> str:
    """The facts of the run, then every table under its heading."""
    lines = [f"- {name}: {value}" for name, value in about.items()]
    for heading, rows in tables.items():
        lines += ["", f"**{heading}**", "", *_table([HEADS, *map(_cells, rows)])]
    return "\n".join(lines)


def as_json(about: Mapping[str, str], tables: Mapping[str, Sequence[Row]], complete: bool) -> dict[str, Any]:
    """The same for programs; ``Row(**row)`` of what stands under ``row`` is the row again."""
    rows = [{"table": heading, "reached": row.reached, "row": asdict(row)} for heading in tables for row in tables[heading]]
    return {"about": dict(about), "complete": complete, "rows": rows}


def line(row: Row) -> str:
    """A row by itself, for who waits."""
    work, ours, beside, theirs, ratio, bound, reached = _cells(row)
    against = f", {beside} {theirs}" if theirs else ""
    verdict = f" ({bound}: {reached})" if bound and reached else f" ({reached})" if reached else ""
    return f"{work}: {ours}{against}{f', × {ratio}' if ratio else ''}{verdict}" if ours else f"{work}: {reached}"


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    if ratio and row.low != row.high:
        ratio += f" ({row.low:.2f} … {row.high:.2f})"
    reached = {None: "", True: "yes", False: "no"}[row.reached]
    ours, theirs = ("" if x is None else f"{_number(x)} {row.unit}".strip() for x in (row.ours, row.theirs))
    return row.work, ours, row.beside, theirs, ratio, row.bound, "; ".join(filter(None, (reached, row.note)))


def _number(x: float) -> str:
    """Three digits, or all before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:#.3g}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    padded = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return [padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]]
