"""A number of rows that the key/value heads of a layer share."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from ..errors import Error
from .budgets import has_sizes_per_head
from .contract import MAX_SIZE, Observation, Reduction
from .head_budgets import HeadBudget, scores

PREFIX = "shared:"
"""Before the spec string of the operator: ``shared:tova-head:512``, or ``shared:floor=0.5:tova-head:512``."""

DEFAULT_FLOOR = 0.2


@dataclass(frozen=True)
class SharedBudget(HeadBudget):
    """K heads of a layer share K · ``size`` rows: of all rows of the layer, those with the lowest scores are evicted.

    Each step appends one row per head, and evicts as many rows of the layer as exceed the budget. They are selected one after
    the other by the scores of the step: the lowest score, of equal scores the oldest position, of equal positions the first
    head. A head with ``floor`` · ``size`` rows or fewer evicts none. So a head with high scores takes rows from the others.

    From Ada-KV (arXiv:2407.11550): the allocation by score within a layer. The paper evicts once after a prompt, as
    ``msrnn.prefill`` does, and its budgets are a mean of the allocated and an equal share. The floor and its default of 0.2 are
    those of AdaKVPress (NVIDIA/kvpress at 002ac9d). In a step rows are evicted after every token, so the allocation changes
    with the text.

    Attributes:
        operator: the scores, with the mean number of rows per head as its ``size``.
        floor: share of ``size`` that every head keeps, from 0 to 1; with 1 each head evicts by itself, once all are full.

    Raises:
        Error: the operator does not decide for each head separately, merges values, depends on the row layout, or has sizes per
            head; ``floor`` is no number from 0 to 1.
    """

    description: ClassVar[str] = "SharedBudget"
    floor: float = field(default=DEFAULT_FLOOR, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if has_sizes_per_head(size := self.operator.size):
            raise Error(f"SharedBudget: {self.operator} has one size per head; expected one size, because the heads share it")
        if not isinstance(self.floor, int | float) or isinstance(self.floor, bool) or not 0 <= self.floor <= 1:
            raise Error(f"SharedBudget: floor is {self.floor!r:.60}; expected a number from 0 to 1")
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "floor", float(self.floor) + 0.0)  # 0, 0.0 and -0.0 are equal, so they have one spec string

    def for_layer(self, layer: int) -> Reduction:
        return replace(self, operator=self.operator.for_layer(layer))

    @property
    def floor_rows(self) -> int:
        """Number of rows that every head keeps."""
        return int(round(self.floor * self.size, 6))  # 0.29 times 100 is 28.999999999999996

    @property
    def rows_before_eviction(self) -> int:
        return self.size

    def max_rows(self, K: int) -> int:
        return K * self.size - (K - 1) * self.floor_rows

    def excess(self, n_rows: Tensor) -> Tensor:
        return n_rows.sum(-1, keepdim=True) - min(n_rows.shape[-1] * self.size, MAX_SIZE)  # int64 does not hold more

    def update(self, observation: Observation) -> dict[str, Tensor]:
        return self.operator.update(observation)

    def score(self, observation: Observation) -> Tensor:
        return scores(self.operator, observation, range(observation.positions.shape[1]))

    def __str__(self) -> str:
        floor = "" if self.floor == DEFAULT_FLOOR else f"floor={self.floor!r}:"
        return f"{PREFIX}{floor}{self.operator}"


def parse_shared(text: str, parse: Callable[[str], Reduction]) -> SharedBudget:
    """Return the operator of a spec string that begins with ``shared:``; ``parse`` reads the spec string of its operator.

    Raises:
        Error: as ``parse`` and :class:`SharedBudget`; a floor that is no number.
    """
    rest, floor = text.removeprefix(PREFIX), DEFAULT_FLOOR
    if rest.startswith("floor="):
        value, _, rest = rest.removeprefix("floor=").partition(":")
        try:
            floor = float(value)
        except ValueError:
            raise Error(f"reduction {text!r:.200}: floor is {value!r:.60}; expected a number from 0 to 1") from None
    return SharedBudget(parse(rest), floor=floor)
