"""One line of a benchmark table: the value, the baseline, their ratio and the target for the ratio."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SIGNS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge}


class SkipBenchmark(Exception):
    """The reason why a section cannot be measured; the section ends there."""


@dataclass(frozen=True)
class Result:
    """One measured workload.

    Attributes:
        workload: description of the work.
        unit: unit of ``value`` and ``baseline``.
        value, baseline: medians over the rounds, or None.
        baseline_name: description of the baseline.
        ratio, low, high: value ÷ baseline, computed within each round: the median, the minimum and the maximum.
        target: a bound for ``ratio`` such as ``≤ 1.25``; other words may follow the number.
        note: a remark, or the reason for missing values.
    """

    workload: str
    unit: str = ""
    value: float | None = None
    baseline_name: str = ""
    baseline: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    target: str = ""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """True if ``ratio`` is within ``target``; None without a ratio or a target."""
        if self.ratio is None or not self.target:
            return None
        sign, number, *_ = self.target.split()
        return SIGNS[sign](self.ratio, float(number))


def paired(
    workload: str,
    unit: str,
    values: Sequence[float],
    baseline_name: str = "",
    baselines: Sequence[float] = (),
    target: str = "",
    note: str = "",
) -> Result:
    """Return the result of a workload and its baseline, measured in the same rounds; without ``baselines`` it has no ratio."""
    if not baselines:
        return Result(workload, unit, median(values), baseline_name, target=target, note=note)
    ratios = [value / baseline for value, baseline in zip(values, baselines, strict=True)]
    medians = {"value": median(values), "baseline": median(baselines), "ratio": median(ratios)}
    spread = {"low": min(ratios), "high": max(ratios)}
    return Result(workload, unit, baseline_name=baseline_name, **medians, **spread, target=target, note=note)
