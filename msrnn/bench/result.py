"""One line of a table: what was measured, what it is set beside, and the bound that it should keep."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SIGNS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge}


class Unmeasured(Exception):
    """Why a row cannot be measured here; a section that raises it has no more rows."""


@dataclass(frozen=True)
class Row:
    """What one line says.

    Attributes:
        work: what is done.
        unit: of ``ours`` and ``theirs``.
        ours, theirs: medians over the rounds; None where there is none.
        beside: what ``theirs`` is.
        ratio, low, high: ours ÷ theirs, taken round by round: the median, the lowest and the highest.
        bound: such as ``≤ 1.25``, of the ratio; words may follow.
        note: why something is missing, or what else there is to know.
    """

    work: str
    unit: str = ""
    ours: float | None = None
    beside: str = ""
    theirs: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    bound: str = ""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the ratio keeps the bound; None where one of them is missing."""
        if self.ratio is None or not self.bound:
            return None
        sign, number, *_ = self.bound.split()
        return SIGNS[sign](self.ratio, float(number))


def paired(
    work: str, unit: str, ours: Sequence[float], beside: str = "", theirs: Sequence[float] = (), bound: str = "", note: str = ""
) -> Row:
    """The row of two ways that were measured in the same rounds; without ``theirs`` there is no ratio."""
    if not theirs:
        return Row(work, unit, median(ours), beside, bound=bound, note=note)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(work, unit, median(ours), beside, median(theirs), median(ratios), min(ratios), max(ratios), bound, note)
