"""Results as Markdown and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..reporting.report import markdown_table
from .result import Result

HEADINGS = ("", "msrnn", "baseline", "", "ratio (low … high)", "target", "reached")


def markdown(about: Mapping[str, str], tables: Mapping[str, Sequence[Result]]) -> str:
    """Return the facts about the run as a list, followed by one table per heading."""
    lines = [f"- {name}: {value}" for name, value in about.items()]
    for heading, results in tables.items():
        lines += ["", f"**{heading}**", "", markdown_table(HEADINGS, list(map(_cells, results)))]
    return "\n".join(lines)


def as_json(about: Mapping[str, str], tables: Mapping[str, Sequence[Result]], complete: bool) -> dict[str, Any]:
    """Return the same contents as a JSON object; ``Result(**row["row"])`` restores a result."""
    rows = [{"table": heading, "reached": row.reached, "row": asdict(row)} for heading in tables for row in tables[heading]]
    return {"about": dict(about), "complete": complete, "rows": rows}


def line(result: Result) -> str:
    """Return one result as a line of text, for progress output."""
    workload, value, name, baseline, ratio, target, reached = _cells(result)
    comparison = f", {name} {baseline}" if baseline else ""
    verdict = f" ({target}: {reached})" if target and reached else f" ({reached})" if reached else ""
    return f"{workload}: {value}{comparison}{f', × {ratio}' if ratio else ''}{verdict}" if value else f"{workload}: {reached}"


def _cells(result: Result) -> tuple[str, ...]:
    ratio = "" if result.ratio is None else f"{result.ratio:.3f}"
    if ratio and result.low != result.high:
        ratio += f" ({result.low:.2f} … {result.high:.2f})"
    reached = {None: "", True: "yes", False: "no"}[result.reached]
    value, baseline = ("" if x is None else f"{_number(x)} {result.unit}".strip() for x in (result.value, result.baseline))
    remarks = "; ".join(filter(None, (reached, result.note)))
    return result.workload, value, result.baseline_name, baseline, ratio, result.target, remarks


def _number(x: float) -> str:
    """Format ``x`` with three significant digits, or with all digits before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:#.3g}"
