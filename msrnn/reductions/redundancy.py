"""An operator that evicts rows with keys similar to other keys."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import Error
from .contract import EMPTY, MAX_SIZE, Observation, SpecNames, is_recent
from .observation_window import LastQueries


@dataclass(frozen=True)
class RKV(LastQueries):
    r"""R-KV (arXiv:2505.24133; Zefan-Cai/R-KV): a row is evicted if it receives little attention and its key is redundant.

    The score is $\lambda I - (1 - \lambda) R$, where λ is ``importance``. I is the mean attention of the last ``window``
    queries; the rows of these queries are protected. R is the softmax, over rows, of the mean cosine of the key with the other
    keys. For each row, the newest rows with a cosine above ``threshold`` do not count, at most a share ``recent_share`` of
    ``size``, so of a group of similar rows the newest stay. One decision per key/value head, by the mean over its query heads.

    All cosines are computed again at each token: rows² × D products for each head, at 512 rows more than the rest of a step of
    a small model.

    From the paper and its code: score, window, threshold and the rows that do not count. The code evicts once per 128 tokens
    and takes the maximum of I over 7 neighbouring rows; here one row is evicted per token and nothing is pooled.
    """

    window: int = 8
    importance: float = 0.1
    threshold: float = 0.5
    recent_share: float = 0.1
    spec_names: ClassVar[SpecNames] = {"r-kv": {}}
    needs_keys: ClassVar[bool] = True
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        super().validate(size)
        for name, lowest in (("importance", 0), ("threshold", -1), ("recent_share", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not lowest <= value <= 1:
                raise Error(f"RKV: {name} is {value!r:.60}; expected a number from {lowest} to 1")

    def score(self, observation: Observation) -> Tensor:
        importance = observation.row_stats["read"].mean(-1)
        score = self.importance * importance - (1 - self.importance) * self.redundancy(observation)
        return score.masked_fill(is_recent(observation, self.window), torch.inf)

    def redundancy(self, observation: Observation) -> Tensor:
        """Return R, ``(B, K, R)``."""
        assert isinstance(self.size, int)
        assert observation.keys is not None
        order = observation.positions.argsort(dim=-1, descending=True)  # (B, K, R), the newest first
        absent = observation.positions.gather(-1, order) == EMPTY
        keys = observation.keys.gather(2, order[..., None].expand_as(observation.keys))
        keys = normalize(keys.masked_fill(absent[..., None], 0), dim=-1)
        cosines = keys @ keys.mT  # (B, K, R, R)
        cosines.diagonal(dim1=-2, dim2=-1).zero_()
        similar = cosines > self.threshold
        if self.threshold < 0:
            similar &= ~absent[:, :, None]  # their cosines are 0
        R = cosines.shape[-1]
        n_newest = min(int(self.recent_share * min(self.size, MAX_SIZE)), R)
        count_dtype = torch.int16 if torch.iinfo(torch.int16).max >= R else torch.int32  # int16 is faster on a CPU
        newest = similar & (similar.cumsum(-1, dtype=count_dtype) <= n_newest)
        mean = cosines.masked_fill_(newest, 0).sum(2) / (~absent).sum(-1, keepdim=True)
        redundancy = mean.masked_fill(absent, -torch.inf).softmax(-1)
        return torch.zeros_like(redundancy).scatter(-1, order, redundancy)
