"""Confidence intervals of paired differences, and a ranking in which differences that may be zero are ties."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from .statistics import paired

Name = TypeVar("Name")
T_VALUES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""97.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom, as scipy gives them. Above 30: 1.96."""


MIN_PAIRS = 3
"""Number of pairs from which an interval is given."""


class Interval(NamedTuple):
    """A mean difference and half the width of its 95 % interval; the half width is infinite if there are too few pairs."""

    value: float
    half_width: float

    @property
    def is_tie(self) -> bool:
        """True if the interval contains zero."""
        return not abs(self.value) > self.half_width

    def __format__(self, spec: str) -> str:
        """Return ``value ± half width``, both in the format ``spec``, or ``value ± –``."""
        if math.isinf(self.half_width):
            return f"{self.value:{spec}} ± –"
        return f"{self.value:{spec}} ± {self.half_width:{spec.lstrip('+')}}"


def paired_interval(values: Sequence[float], others: Sequence[float]) -> Interval:
    """Return the mean of ``values − others`` with its 95 % interval, by Student's t distribution.

    Differences between chunks or questions are taken as independent. If at least ``statistics.MIN_EQUAL`` differences are all
    equal, the interval has no width. Fewer equal differences, and fewer than ``MIN_PAIRS``, have no interval and are a tie.
    """
    value, error = paired(values, others)
    degrees = len(values) - 1
    if degrees + 1 < MIN_PAIRS or math.isnan(error):
        return Interval(value, math.inf)
    return Interval(value, error * (T_VALUES[degrees - 1] if degrees <= len(T_VALUES) else 1.96))


def rank_with_ties(names: Sequence[Name], values: Mapping[Name, Sequence[float]]) -> dict[Name, str]:
    """Return the rank of each name, the highest mean first. Names that tie with the best name of their rank share it.

    Args:
        names: what is ranked.
        values: for each name, the values of the same items; higher is better.

    Returns:
        The ranks by name: ``1``, or ``2=`` for a rank that several names share.
    """
    left = sorted(names, key=lambda name: -sum(values[name]) / len(values[name]))  # stable for equal means
    ranks: dict[Name, str] = {}
    while left:
        best = values[left[0]]
        group = [left[0], *(name for name in left[1:] if paired_interval(values[name], best).is_tie)]
        rank = f"{len(ranks) + 1}{'=' if len(group) > 1 else ''}"
        ranks |= dict.fromkeys(group, rank)
        left = [name for name in left if name not in group]
    return ranks
