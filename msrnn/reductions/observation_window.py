"""Operators that look back over the last queries, not over a row's whole life: each row keeps what these did to it, one value a
query, written over in turn."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .contract import EMPTY, Forms, Reduction, Seen


def newest(seen: Seen, count: int) -> Tensor:
    """``(B, K, R)`` bool: the rows of the last ``count`` tokens, the current one included."""
    return seen.positions > seen.clock[:, None, None] - count


@dataclass(frozen=True)
class LastQueries(Reduction):
    """SnapKV's score (arXiv:2404.14469) as a step rule: what the last ``window`` queries attended to least, in sum, goes.

    The rows of these queries themselves may not. Per key/value head, by the mean over the query heads that share it. SnapKV
    cuts a prompt once and pools neighbouring positions before; here one row leaves at each step, from among few neighbours.
    """

    window: int = 32
    forms: ClassVar[Forms] = {"last-queries": {}}
    numbers: ClassVar[tuple[str, ...]] = ("read",)

    def check(self, size: int | None) -> None:
        super().check(size)
        self._whole("window", self.window, at_least=1, at_most=size)

    def shape(self, name: str) -> tuple[int, ...]:
        return (self.window,)

    def profile(self, seen: Seen) -> Tensor:
        """``(B, K, R)``: what the current query reads."""
        return seen.weights.mean(2)

    def fused(self, read: Tensor) -> Tensor:
        """``(B, K, R, window) -> (B, K, R)``."""
        return read.sum(-1)

    def update(self, seen: Seen) -> dict[str, Tensor]:
        now = seen.clock[:, None] % self.window == torch.arange(self.window, device=seen.clock.device)  # (B, window)
        return {"read": torch.where(now[:, None, None], self.profile(seen)[..., None], seen.numbers["read"])}

    def score(self, seen: Seen) -> Tensor:
        return self.fused(seen.numbers["read"]).masked_fill(newest(seen, self.window), torch.inf)


@dataclass(frozen=True)
class MorphKV(LastQueries):
    """MorphKV (arXiv:2503.00979): as :class:`LastQueries`, but query heads that share keys speak with one voice, the softmax of
    the sum of their logits; the last queries' voices are added up, or the loudest counts (``largest``)."""

    largest: bool = False
    forms: ClassVar[Forms] = {"morphkv": {"largest": False}, "morphkv-max": {"largest": True}}

    def check(self, size: int | None) -> None:
        super().check(size)
        self._flag("largest", self.largest)

    def profile(self, seen: Seen) -> Tensor:
        logits = seen.weights.clamp(min=torch.finfo(seen.weights.dtype).tiny).log().sum(2)  # but for a constant of each query
        return logits.masked_fill(seen.positions == EMPTY, -torch.inf).softmax(-1)

    def fused(self, read: Tensor) -> Tensor:
        return read.amax(-1) if self.largest else read.sum(-1)


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
    forms: ClassVar[Forms] = {"scissorhands": {}}
    numbers: ClassVar[tuple[str, ...]] = ("times", "when")

    def check(self, size: int | None) -> None:
        super().check(size)
        self._whole("recent", self.recent, at_least=0, at_most=size)
        self._whole("history", self.history, at_least=1)

    def shape(self, name: str) -> tuple[int, ...]:
        return (-(-self.history // BITS),) if name == "when" else ()

    def update(self, seen: Seen) -> dict[str, Tensor]:
        times, when = seen.numbers["times"], seen.numbers["when"]  # (B, K, R), (B, K, R, words of BITS yes or no)
        unimportant = (seen.weights.mean(2) * (seen.clock + 1)[:, None, None] < 1).to(times.dtype)
        turn = (seen.clock % self.history)[:, None, None, None]
        bit = 2.0 ** (turn % BITS).to(times.dtype)
        here = torch.arange(when.shape[-1], device=turn.device) == turn // BITS
        before = torch.where(here, (when / bit).floor() % 2, 0)
        after = torch.where(here, unimportant[..., None], 0)
        return {"times": times + (after - before).sum(-1), "when": when + (after - before) * bit}

    def score(self, seen: Seen) -> Tensor:
        return -seen.numbers["times"].masked_fill(newest(seen, self.recent), 0)


BITS = 24
"""Answers in one number: what float32 holds exactly."""
