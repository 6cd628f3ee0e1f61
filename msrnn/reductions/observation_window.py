"""Operators that look back over the last queries, not over a row's whole life: each row keeps what these did to it, one value a
query, written over in turn."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .contract import EMPTY, Observation, Reduction, SpecNames, is_recent


@dataclass(frozen=True)
class LastQueries(Reduction):
    """SnapKV's score (arXiv:2404.14469) as a step rule: what the last ``window`` queries attended to least, in sum, goes.

    The rows of these queries themselves may not. Per key/value head, by the mean over the query heads that share it. SnapKV
    cuts a prompt once and pools neighbouring positions before; here one row leaves at each step, from among few neighbours.
    """

    window: int = 32
    spec_names: ClassVar[SpecNames] = {"last-queries": {}}
    depends_on_row_layout: ClassVar[bool] = False
    stat_names: ClassVar[tuple[str, ...]] = ("read",)

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("window", self.window, at_least=1, at_most=size)

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return (self.window,)

    def query_weights(self, observation: Observation) -> Tensor:
        """``(B, K, R)``: what the current query reads."""
        return observation.weights.mean(2)

    def aggregate(self, read: Tensor) -> Tensor:
        """``(B, K, R, window) -> (B, K, R)``."""
        return read.sum(-1)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        now = observation.clock[:, None] % self.window == torch.arange(
            self.window, device=observation.clock.device
        )  # (B, window)
        return {
            "read": torch.where(now[:, None, None], self.query_weights(observation)[..., None], observation.row_stats["read"])
        }

    def score(self, observation: Observation) -> Tensor:
        return self.aggregate(observation.row_stats["read"]).masked_fill(is_recent(observation, self.window), torch.inf)


@dataclass(frozen=True)
class MorphKV(LastQueries):
    """MorphKV (arXiv:2503.00979): as :class:`LastQueries`, but query heads that share keys speak with one voice, the softmax of
    the sum of their logits; the last queries' voices are added up, or the loudest counts (``largest``)."""

    max_fusion: bool = False
    spec_names: ClassVar[SpecNames] = {"morphkv": {"max_fusion": False}, "morphkv-max": {"max_fusion": True}}
    depends_on_row_layout: ClassVar[bool] = False

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_bool("max_fusion", self.max_fusion)

    def query_weights(self, observation: Observation) -> Tensor:
        logits = (
            observation.weights.clamp(min=torch.finfo(observation.weights.dtype).tiny).log().sum(2)
        )  # but for a constant of each query
        return logits.masked_fill(observation.positions == EMPTY, -torch.inf).softmax(-1)

    def aggregate(self, read: Tensor) -> Tensor:
        return read.amax(-1) if self.max_fusion else read.sum(-1)


@dataclass(frozen=True)
class Scissorhands(Reduction):
    """Scissorhands (arXiv:2305.17118, alg. 2) as a step rule: the row that was unimportant most often goes.

    A row is unimportant to the t-th query if it gets less than 1 / t of its attention; this is counted over the last
    ``history`` queries, and not at all for the ``recent`` newest rows. Per key/value head, by the mean over the query heads
    that share it. The paper drops half of a full H at once; here one row leaves at each step. Its larger sizes for deep
    layers ``size`` can say.
    """

    recent: int = 10
    history: int = 400
    spec_names: ClassVar[SpecNames] = {"scissorhands": {}}
    depends_on_row_layout: ClassVar[bool] = False
    stat_names: ClassVar[tuple[str, ...]] = ("low_count", "low_history")

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("recent", self.recent, at_least=0, at_most=size)
        self._check_int("history", self.history, at_least=1)

    def stat_shape(self, name: str) -> tuple[int, ...]:
        return (-(-self.history // BITS_PER_WORD),) if name == "low_history" else ()

    def update(self, observation: Observation) -> dict[str, Tensor]:
        low_count, low_history = (
            observation.row_stats["low_count"],
            observation.row_stats["low_history"],
        )  # (B, K, R), (B, K, R, words of BITS yes or no)
        unimportant = (observation.weights.mean(2) * (observation.clock + 1)[:, None, None] < 1).to(low_count.dtype)
        turn = (observation.clock % self.history)[:, None, None, None]
        bit = 2.0 ** (turn % BITS_PER_WORD).to(low_count.dtype)
        here = torch.arange(low_history.shape[-1], device=turn.device) == turn // BITS_PER_WORD
        before = torch.where(here, (low_history / bit).floor() % 2, 0)
        after = torch.where(here, unimportant[..., None], 0)
        return {"low_count": low_count + (after - before).sum(-1), "low_history": low_history + (after - before) * bit}

    def score(self, observation: Observation) -> Tensor:
        return -observation.row_stats["low_count"].masked_fill(is_recent(observation, self.recent), 0)


BITS_PER_WORD = 24
"""Answers in one number: what float32 holds exactly."""
