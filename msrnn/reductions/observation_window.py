"""Operators that score rows by the attention of the last queries, instead of all queries since a row was appended.

Each row keeps one value per query of the window. The values are overwritten in turn.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .contract import EMPTY, Observation, Reduction, SpecNames, is_recent

BITS_PER_WORD = 24
"""Number of bits in one statistic of Scissorhands: float32 represents integers of 24 bits exactly."""


@dataclass(frozen=True)
class LastQueries(Reduction):
    """SnapKV's score (arXiv:2404.14469) as a step rule: the score is the attention of the last ``window`` queries.

    The rows of these queries are protected. One decision per key/value head, by the mean over its query heads. SnapKV evicts
    once after a prompt and pools neighbouring positions before; here one row is evicted at each step, without pooling.
    """

    window: int = 32
    spec_names: ClassVar[SpecNames] = {"last-queries": {}}
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"
    stat_names: ClassVar[tuple[str, ...]] = ("read",)

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("window", self.window, at_least=1, at_most=size)

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return (self.window,)

    def query_weights(self, observation: Observation) -> Tensor:
        """Return the attention of the current query, ``(B, K, R)``."""
        return observation.weights.mean(2)

    def aggregate(self, read: Tensor) -> Tensor:
        """Combine the queries of the window: ``(B, K, R, window) -> (B, K, R)``."""
        return read.sum(-1)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        slot = torch.arange(self.window, device=observation.clock.device)
        now = observation.clock[:, None] % self.window == slot  # (B, window)
        weights = self.query_weights(observation)[..., None]
        return {"read": torch.where(now[:, None, None], weights, observation.row_stats["read"])}

    def score(self, observation: Observation) -> Tensor:
        return self.aggregate(observation.row_stats["read"]).masked_fill(is_recent(observation, self.window), torch.inf)


@dataclass(frozen=True)
class MorphKV(LastQueries):
    """MorphKV (arXiv:2503.00979): :class:`LastQueries` with fused query heads.

    Query heads that share keys are fused to the softmax of the sum of their logits. The queries of the window are combined by
    the sum (sum fusion), or by the maximum with ``max_fusion``.
    """

    max_fusion: bool = False
    spec_names: ClassVar[SpecNames] = {"morphkv": {"max_fusion": False}, "morphkv-max": {"max_fusion": True}}
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_bool("max_fusion", self.max_fusion)

    def query_weights(self, observation: Observation) -> Tensor:
        weights = observation.weights
        logits = weights.clamp(min=torch.finfo(weights.dtype).tiny).log().sum(2)  # up to a constant per query
        return logits.masked_fill(observation.positions == EMPTY, -torch.inf).softmax(-1)

    def aggregate(self, read: Tensor) -> Tensor:
        return read.amax(-1) if self.max_fusion else read.sum(-1)


@dataclass(frozen=True)
class Scissorhands(Reduction):
    """Scissorhands (arXiv:2305.17118, alg. 2) as a step rule: the row with the most low-attention events is evicted.

    A row has a low-attention event at the t-th query if it receives less than 1/t of its attention. Events of the last
    ``history`` queries are counted. The ``recent`` newest rows count as 0. One decision per key/value head, by the mean over
    its query heads. The paper evicts half of a full cache at once; here one row is evicted at each step. The paper's larger
    sizes for deep layers can be given as ``size`` per layer.
    """

    recent: int = 10
    history: int = 400
    spec_names: ClassVar[SpecNames] = {"scissorhands": {}}
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"
    stat_names: ClassVar[tuple[str, ...]] = ("low_count", "low_history")

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("recent", self.recent, at_least=0, at_most=size)
        self._check_int("history", self.history, at_least=1)

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return (-(-self.history // BITS_PER_WORD),) if name == "low_history" else ()

    def update(self, observation: Observation) -> dict[str, Tensor]:
        count, history = observation.row_stats["low_count"], observation.row_stats["low_history"]  # (B, K, R), (B, K, R, words)
        low = (observation.weights.mean(2) * (observation.clock + 1)[:, None, None] < 1).to(count.dtype)
        turn = (observation.clock % self.history)[:, None, None, None]
        bit = 2.0 ** (turn % BITS_PER_WORD).to(count.dtype)
        in_word = torch.arange(history.shape[-1], device=turn.device) == turn // BITS_PER_WORD
        before = torch.where(in_word, (history / bit).floor() % 2, 0)
        after = torch.where(in_word, low[..., None], 0)
        return {"low_count": count + (after - before).sum(-1), "low_history": history + (after - before) * bit}

    def score(self, observation: Observation) -> Tensor:
        return -observation.row_stats["low_count"].masked_fill(is_recent(observation, self.recent), 0)
