"""H2O with sums that decay."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import Error
from .contract import Observation, Reduction, SpecNames


@dataclass(frozen=True)
class A2SF(Reduction):
    r"""A2SF (arXiv:2407.20485): H2O with a forgetting factor.

    The score of a row is $\sum_q \alpha^{t - q} p_q$ over the queries q since the row was appended, where p_q is the attention
    that it received and α is ``forgetting``. One decision per key/value head, by the mean over its query heads. No row is
    protected. With α = 0 this is ``tova-head``, with α = 1 it is H2O without protected rows.

    From the paper: the sum. Chosen here: the default of α, and one decision for the query heads that share a key.
    """

    forgetting: float = 0.9
    spec_names: ClassVar[SpecNames] = {"a2sf": {}}
    stat_names: ClassVar[tuple[str, ...]] = ("decayed_attention",)
    depends_on_other_positions: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        super().validate(size)
        number = isinstance(self.forgetting, int | float) and not isinstance(self.forgetting, bool)
        if not number or not 0 <= self.forgetting <= 1:
            raise Error(f"A2SF: forgetting is {self.forgetting!r:.60}; expected a number from 0 to 1")

    def update(self, observation: Observation) -> dict[str, Tensor]:
        received = observation.weights.mean(2)  # (B, K, R)
        return {"decayed_attention": self.forgetting * observation.row_stats["decayed_attention"] + received}

    def score(self, observation: Observation) -> Tensor:
        return observation.row_stats["decayed_attention"]
