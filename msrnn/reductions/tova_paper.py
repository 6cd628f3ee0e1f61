"""The operators of the TOVA paper (arXiv:2401.06104): Full, Window, Sinks, H2O and TOVA."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import Error
from .contract import Observation, Reduction, SpecNames, constant_score, is_recent


@dataclass(frozen=True)
class Full(Reduction):
    """No eviction: the published transformer, g(t) = t."""

    size: None = None
    spec_names: ClassVar[SpecNames] = {"full": {}}
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        if size is not None:
            raise Error(f"Full: size is {size!r:.60}; expected None")

    def score(self, observation: Observation) -> Tensor:
        return constant_score(observation, torch.inf)


@dataclass(frozen=True)
class Window(Reduction):
    """Eviction of the oldest row. ``Window(W - 1)`` is a sliding window of W tokens, the current one included."""

    spec_names: ClassVar[SpecNames] = {"window": {}}
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        self._check_int("size", size, at_least=0)

    def score(self, observation: Observation) -> Tensor:
        return constant_score(observation, 0.0)  # all rows tie, so the oldest is evicted


@dataclass(frozen=True)
class Sinks(Reduction):
    """The first ``sinks`` tokens are protected, the oldest of the rest is evicted.

    Window+i of the TOVA paper; StreamingLLM (arXiv:2309.17453) with absolute positions.
    """

    sinks: int = 4
    spec_names: ClassVar[SpecNames] = {"sinks": {}}
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def validate(self, size: int | None) -> None:
        self._check_int("size", size, at_least=2)
        assert isinstance(size, int)
        self._check_int("sinks", self.sinks, at_least=1, at_most=size - 1)

    def score(self, observation: Observation) -> Tensor:
        return constant_score(observation, 0.0).masked_fill(observation.positions[:, :1] < self.sinks, torch.inf)

    def __str__(self) -> str:
        text = super().__str__()  # which omits the default number of sinks; the name of the paper states it
        return f"{text}:4" if type(self) is Sinks and self.sinks == 4 else text


@dataclass(frozen=True)
class H2O(Reduction):
    """Heavy-hitter oracle (arXiv:2306.14048): the score is the attention that a row has received since it was appended.

    The ``recent`` newest rows, the current row included, are protected; the default is half of ``size``. One decision per
    key/value head, by the mean over its query heads; ``per_head=False`` takes one decision for the layer.
    """

    recent: int | None = None
    per_head: bool = True
    spec_names: ClassVar[SpecNames] = {"h2o": {"per_head": True}, "h2o-layer": {"per_head": False}}
    stat_names: ClassVar[tuple[str, ...]] = ("accumulated_attention",)
    update_is_additive: ClassVar[bool] = True
    depends_on_other_positions: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False

    @property
    def reads_heads(self) -> str:  # type: ignore[override]
        return "own" if self.per_head else "mean"

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_bool("per_head", self.per_head)
        if self.recent is not None:
            self._check_int("recent", self.recent, at_least=0, at_most=size)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        received = observation.weights.mean(2)  # (B, K, R)
        return {"accumulated_attention": observation.row_stats["accumulated_attention"] + received}

    def score(self, observation: Observation) -> Tensor:
        assert isinstance(self.size, int)
        recent = is_recent(observation, self.size // 2 if self.recent is None else self.recent)
        score = observation.row_stats["accumulated_attention"]
        if not self.per_head:
            score, recent = score.mean(1, keepdim=True), recent[:, :1]
        return torch.where(recent, torch.inf, score)


@dataclass(frozen=True)
class TOVA(Reduction):
    """Token omission via attention (arXiv:2401.06104, eq. 9): the score is the attention of the current query.

    One decision for the layer, by the mean over all query heads; the current token may be evicted. ``per_head=True`` takes one
    decision per key/value head, by the mean over its query heads.
    """

    per_head: bool = False
    spec_names: ClassVar[SpecNames] = {"tova": {"per_head": False}, "tova-head": {"per_head": True}}
    depends_on_other_positions: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False

    @property
    def reads_heads(self) -> str:  # type: ignore[override]
        return "own" if self.per_head else "mean"

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_bool("per_head", self.per_head)

    def score(self, observation: Observation) -> Tensor:
        return observation.weights.mean(2) if self.per_head else observation.weights.mean((1, 2))[:, None]
