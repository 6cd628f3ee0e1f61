"""An operator that compares the tokens of one part of the text with the next part, without attention."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..layers.differentiation import is_readable
from .contract import Observation, Reduction, SpecNames


@dataclass(frozen=True)
class LagKV(Reduction):
    """LagKV (arXiv:2504.04704; NVIDIA/kvpress at 08a43bf): rows are ranked within parts of ``lag`` tokens.

    The text after the first ``sinks`` tokens is divided into parts of ``lag`` tokens. When a part is complete, the part before
    it is ranked. Each channel of its keys is scaled by the minimum and the maximum of the new part, the standard deviation
    over the channels gives one number per row, and a softmax over the rows of the part a score. The same is done for values,
    and the mean of both scores gives the rank. The row of the lowest rank of all parts is evicted. Rows without a
    rank and the sinks are protected: at most ``sinks`` + 2 ``lag`` − 1 rows, which have to fit into ``size``. The default lag
    is a quarter of the rows after the sinks, at most the 128 of the paper. One decision per key/value head.

    From the paper and its code: parts, scores, ranks and sinks. They evict the lowest ranks of a whole part at once; here one
    row is evicted per token, so a lower rank in a newer part is evicted before a higher one in an older part.
    """

    lag: int | None = None
    sinks: int = 4
    spec_names: ClassVar[SpecNames] = {"lagkv": {}}
    stat_names: ClassVar[tuple[str, ...]] = ("lag_rank",)
    needs_weights: ClassVar[bool] = False
    needs_keys: ClassVar[bool] = True
    needs_values: ClassVar[bool] = True
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        self._check_int("size", size, at_least=9)
        assert isinstance(size, int)
        self._check_int("sinks", self.sinks, at_least=0, at_most=size - 8)
        if self.lag is not None:
            self._check_int("lag", self.lag, at_least=2, at_most=(size + 1 - self.sinks) // 2)

    @property
    def part(self) -> int:
        """Number of tokens in a part."""
        assert isinstance(self.size, int)
        return min(128, (self.size - self.sinks) // 4) if self.lag is None else self.lag

    def update(self, observation: Observation) -> dict[str, Tensor]:
        assert observation.keys is not None
        assert observation.values is not None
        rank, part = observation.row_stats["lag_rank"], self.part
        n_read = observation.clock[:, None, None] + 1 - self.sinks
        if is_readable(n_read) and not bool((n_read % part == 0).any()):
            return {"lag_rank": rank}  # no part is complete at this token
        part_of_row = (observation.positions - self.sinks).div(part, rounding_mode="floor")
        part_of_row = part_of_row.masked_fill(observation.positions < self.sinks, -(2**62))  # also absent and learned rows
        newest_part = n_read.div(part, rounding_mode="floor") - 1
        ranked = (part_of_row == newest_part - 1) & (n_read % part == 0)
        scores = [_spread(x, part_of_row == newest_part) for x in (observation.keys, observation.values)]
        score = sum(x.masked_fill(~ranked, -torch.inf).softmax(-1) for x in scores)
        assert isinstance(score, Tensor)
        score = torch.where(ranked, score, torch.inf)
        lower = torch.searchsorted(score.sort(dim=-1).values, score)  # (B, K, R), number of rows with a lower score
        return {"lag_rank": torch.where(ranked, (lower + 1).to(rank.dtype), rank)}

    def score(self, observation: Observation) -> Tensor:
        rank = observation.row_stats["lag_rank"]
        return torch.where(rank > 0, rank, torch.inf)


def _spread(x: Tensor, reference: Tensor) -> Tensor:
    """Return the standard deviation over channels of rows ``x (B, K, R, D)``, scaled by the rows of ``reference (B, K, R)``."""
    reference = reference[..., None]
    low = x.masked_fill(~reference, torch.inf).amin(2, keepdim=True)  # (B, K, 1, D)
    high = x.masked_fill(~reference, -torch.inf).amax(2, keepdim=True)
    width = torch.where(high > low, high - low, 1)  # 1 also where there is no reference row, and the result is not used
    return ((x - low) / width).std(-1)
