"""The page of the table: overview with ranks, paired differences, and quality against bytes of H."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import counted
from ..reporting.intervals import Interval, paired_interval, rank_with_ties
from ..reporting.report import Curves, Report, Table
from ..reporting.statistics import mean
from .conditions import condition_name, is_published
from .table_plan import LM, MEMORY, REASONING, RETRIEVAL

Key = tuple[str, int | None]
"""Operator and size."""
QUALITIES = {
    LM: ("Nats per token", "chunk", ".3f", 1.0, -1),
    RETRIEVAL: ("Retrieval score, points of 100", "question", ".0f", 100.0, 1),
    REASONING: ("Right answers of 100", "problem", ".0f", 100.0, 1),
}
"""For each quality: title, name of an item, format, factor of the values, and −1 if lower values are better."""


@dataclass(frozen=True)
class Measured:
    """One value: ``operator`` and ``size``, the quality, the name of the chunk or question, and the value."""

    operator: str
    size: int | None
    quality: str
    item: str
    value: float


def report(results: Sequence[Measured], against: str, remarks: str) -> Report:
    """Return the overview, one table of differences per quality, and one figure per quality.

    Args:
        results: values of the same items under each condition, and of the unbounded model among them.
        against: the operator that the others are compared with at the same size.
        remarks: sentences on the text of the bytes, on sizes that evict nothing, and on unfinished items, for the overview.
    """
    values: dict[str, dict[Key, list[float]]] = {}
    for r in results:
        values.setdefault(r.quality, {}).setdefault((r.operator, r.size), []).append(r.value)
    nbytes = {key: x[0] for key, x in values.pop(MEMORY).items()}
    keys = sorted(nbytes, key=lambda key: (key[1] is not None, key[1] or 0))  # unbounded first; the order within a size is kept
    ranks = {quality: _ranks(by_key, QUALITIES[quality][-1]) for quality, by_key in values.items()}
    tables = [_overview(keys, nbytes, values, ranks, remarks)]
    tables += [_differences(quality, keys, values[quality], against, ranks[quality]) for quality in values]
    figures = {f"table-{quality}.png": _curves(quality, nbytes, by_key) for quality, by_key in values.items()}
    return Report(tables, _records(keys, nbytes, values, ranks, against), figures)


def _unbounded(keys: Mapping[Key, object]) -> Key:
    return next(key for key in keys if is_published(key[0]))


def _reference(key: Key, against: str, values: Mapping[Key, object]) -> Key | None:
    """Return the operator ``against`` at the size of ``key``; None for itself or where it is not measured."""
    found = next((k for k in ((against, key[1]), (against, None)) if k in values), None)
    return None if found == key else found


def _ranks(by_key: Mapping[Key, list[float]], sign: int) -> dict[Key, str]:
    """Return the ranks among the operators of one size."""
    found: dict[Key, str] = {}
    for size in dict.fromkeys(size for _, size in by_key):
        names = [key for key in by_key if key[1] == size]
        if size is not None:
            found |= rank_with_ties(names, {key: [sign * x for x in by_key[key]] for key in names})
    return found


def _overview(
    keys: Sequence[Key],
    nbytes: Mapping[Key, float],
    values: Mapping[str, Mapping[Key, list[float]]],
    ranks: Mapping[str, Mapping[Key, str]],
    remarks: str,
) -> Table:
    columns, rows = ["operator", "MB of H"], []
    for quality in values:
        columns += [quality, "rank"]
    for key in keys:
        row = [condition_name(*key), f"{nbytes[key] / 1e6:.2f}"]
        for quality, by_key in values.items():
            _, _, spec, factor, _ = QUALITIES[quality]
            row += [f"{factor * mean(by_key[key]).value:{spec}}", ranks[quality].get(key, "")]
        rows.append(row)
    counts = ", ".join(counted(len(next(iter(by_key.values()))), QUALITIES[q][1]) for q, by_key in values.items())
    note = (
        f"Means over {counts}: nats per token (lower is better), points of 100 in retrieval and reasoning (higher is better). "
        "Ranks are among the operators of one size. Operators share a rank (=) if the 95 % interval of their paired difference "
        "from the best one of the rank contains zero."
    )
    return Table("Overview", columns, rows, f"{note} {remarks}".strip())


def _differences(
    quality: str, keys: Sequence[Key], by_key: Mapping[Key, list[float]], against: str, ranks: Mapping[Key, str]
) -> Table:
    title, item, spec, factor, sign = QUALITIES[quality]
    unbounded, rows = _unbounded(by_key), []
    for key in keys:
        if key == unbounded:
            continue
        row = [condition_name(*key), f"{factor * mean(by_key[key]).value:{spec}}"]
        row.append(f"{_difference(by_key, key, unbounded, factor):+{spec}}")
        other = _reference(key, against, by_key)
        if other is None:
            row += ["", ""]
        else:
            difference = _difference(by_key, key, other, factor)
            row += [f"{difference:+{spec}}", _verdict(difference, sign)]
        rows.append([*row, ranks.get(key, "")])
    n = counted(len(by_key[unbounded]), item)
    note = f"{n}. Paired differences with their 95 % intervals; a tie: the interval contains zero."
    columns = ["operator", "mean", "from unbounded", f"from {against}", "", "rank"]
    return Table(title, columns, rows, note)


def _difference(by_key: Mapping[Key, list[float]], key: Key, other: Key, factor: float) -> Interval:
    return paired_interval([factor * x for x in by_key[key]], [factor * x for x in by_key[other]])


def _verdict(difference: Interval, sign: int) -> str:
    return "tie" if difference.is_tie else "better" if difference.value * sign > 0 else "worse"


def _records(
    keys: Sequence[Key],
    nbytes: Mapping[Key, float],
    values: Mapping[str, Mapping[Key, list[float]]],
    ranks: Mapping[str, Mapping[Key, str]],
    against: str,
) -> list[dict[str, object]]:
    found = []
    for key in keys:
        record: dict[str, object] = {"operator": key[0], "size": key[1], "nbytes": nbytes[key], "reference": against}
        for quality, by_key in values.items():
            other = _reference(key, against, by_key)
            record[quality] = {
                "items": len(by_key[key]),
                "mean": mean(by_key[key]).value,
                "rank": ranks[quality].get(key),
                "from_unbounded": _pair(_difference(by_key, key, _unbounded(by_key), 1.0)),
                "from_reference": None if other is None else _pair(_difference(by_key, key, other, 1.0)),
            }
        found.append(record)
    return found


def _pair(interval: Interval) -> dict[str, float | None]:
    finite = math.isfinite(interval.half_width)  # JSON has no infinity
    return {"difference": interval.value, "half_width": interval.half_width if finite else None}


def _curves(quality: str, nbytes: Mapping[Key, float], by_key: Mapping[Key, list[float]]) -> Curves:
    title, item, _, factor, _ = QUALITIES[quality]
    unbounded, lines = _unbounded(by_key), dict[str, list[tuple[float, float, float]]]()
    for key in sorted((key for key in by_key if key != unbounded), key=lambda key: nbytes[key]):
        value, half_width = _difference(by_key, key, unbounded, factor)
        error = half_width if math.isfinite(half_width) else math.nan
        lines.setdefault(key[0], []).append((nbytes[key] / 1e6, value, error))
    heading, size = f"paired differences and their 95 % intervals over {item}s", f"{nbytes[unbounded] / 1e6:.1f} MB"
    if quality == LM and all(y > 0 for points in lines.values() for _, y, _ in points):  # so that close operators differ
        return Curves(heading, "MB of H", f"Nats per token above unbounded ({size})", lines, log_y=True)
    return Curves(heading, "MB of H", f"{title}, relative to unbounded", lines, {f"unbounded, {size}": 0.0})
