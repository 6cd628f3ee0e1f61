"""How many rows each head of a layer holds after a number of tokens, and which of them the operator guarantees."""

from dataclasses import dataclass

from torch import Tensor

from ..reductions.contract import Reduction
from ..reductions.head_budgets import HeadSizes
from ..reductions.shared_budget import SharedBudget
from ..reductions.tova_paper import H2O, Sinks, Window


@dataclass(frozen=True)
class ExpectedRows:
    """Rows of the K heads of a layer.

    Attributes:
        least, most: for each head, the smallest and the largest number of rows.
        total: number of rows of all heads.
        first, newest: for each head, number of first and of newest tokens that are never evicted.
    """

    least: tuple[int, ...]
    most: tuple[int, ...]
    total: int
    first: tuple[int, ...]
    newest: tuple[int, ...]

    @classmethod
    def of(cls, operator: Reduction, K: int, clock: int) -> "ExpectedRows":
        """Return the rows of K heads under the operator of a layer after ``clock`` tokens."""
        if isinstance(operator, SharedBudget):  # which rows a head holds depends on the other heads
            most, least = min(clock, operator.max_rows(K)), min(clock, operator.floor_rows)
            return cls((least,) * K, (most,) * K, K * min(clock, operator.size), (0,) * K, (0,) * K)
        of_heads: list[Reduction | None] = [operator] * K
        if isinstance(operator, HeadSizes):
            for one, heads in operator.groups:
                for k in heads:
                    of_heads[k] = one
        counts = tuple(min(clock, one.size) if one and isinstance(one.size, int) else clock for one in of_heads)
        first, newest = zip(*map(_guaranteed_rows, of_heads), strict=True)
        return cls(counts, counts, sum(counts), first, newest)

    def fit(self, counts: Tensor) -> bool:
        """Return True for these numbers of rows ``(K,)``."""
        found = counts.tolist()
        each = all(least <= n <= most for n, least, most in zip(found, self.least, self.most, strict=True))
        return each and sum(found) == self.total

    def __str__(self) -> str:
        if self.least != self.most:
            return f"{self.total} in total, {self.least[0]} to {self.most[0]} each"
        return f"{self.most[0]} each" if len(set(self.most)) == 1 else str(list(self.most))

    @property
    def guaranteed(self) -> str:
        """The rows that are never evicted, for messages."""
        first, newest = (str(x[0] if len(set(x)) == 1 else list(x)) for x in (self.first, self.newest))
        return f"the first {first} and the newest {newest} tokens"

    def missing(self, positions: Tensor, clock: int) -> bool:
        """Return True if some of the rows that are never evicted are not among the positions ``(K, S)``."""
        for row, first, newest in zip(positions.tolist(), self.first, self.newest, strict=True):
            if not {*range(min(first, clock)), *range(max(0, clock - newest), clock)}.issubset(row):
                return True
        return False


def _guaranteed_rows(operator: Reduction | None) -> tuple[int, int]:
    """Return the number of first tokens and the number of newest tokens that an operator never evicts; None retains all."""
    size = None if operator is None else operator.size
    if not isinstance(size, int):
        return 0, 0
    if isinstance(operator, Sinks):
        return operator.sinks, size - operator.sinks
    if isinstance(operator, H2O):
        return 0, size // 2 if operator.recent is None else operator.recent
    return 0, size if isinstance(operator, Window) else 0
