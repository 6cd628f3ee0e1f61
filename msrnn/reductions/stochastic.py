"""Operators that draw lots. What they draw is a hash (``chance.py``), so a run can be repeated, split and taken back."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .contract import Forms, Reduction, Seen, Sinks
from .hash_rng import uniform


class Drawn(Reduction):
    """What these have in common: a seed, and the layer, which ``at`` fills in, so that layers draw apart."""

    seed: int
    layer: int | None

    def check(self, size: int | None) -> None:
        super().check(size)
        self._whole("seed", self.seed, at_least=0)
        if self.layer is not None:
            self._whole("layer", self.layer, at_least=0)

    def at(self, layer: int) -> Reduction:
        return replace(super().at(layer), layer=layer)  # type: ignore[call-arg]  # those who draw have one

    def draw(self, head: Tensor, positions: Tensor, clock: Tensor) -> Tensor:
        """Numbers between 0 and 1, broadcast."""
        return uniform(self.seed, self.layer or 0, head, positions, clock)


@dataclass(frozen=True)
class Random(Drawn):
    """Any row goes, each as likely as the others, of each key/value head by itself: what an operator has to beat."""

    seed: int = 0
    layer: int | None = field(default=None, kw_only=True)
    forms: ClassVar[Forms] = {"random": {}}
    blind: ClassVar[bool] = True

    def score(self, seen: Seen) -> Tensor:
        head = torch.arange(seen.positions.shape[1], device=seen.positions.device)[:, None]
        return self.draw(head, seen.positions, seen.clock[:, None, None])


@dataclass(frozen=True)
class Keyformer(Drawn):
    r"""Keyformer (arXiv:2403.09054; d-matrix-ai/keyformer-llm at 5bbbcb1): what a row has received since it entered by
    attention with noise, $\mathrm{softmax}((z + \zeta) / \tau)$; the lowest goes.

    z are the logits of attention, ζ is Gumbel noise, drawn for each query, and the temperature τ rises from 1 to 2 over the
    first ``steps`` tokens (in the paper over the answer, whose length is known there). The ``recent`` newest rows (30 % of
    ``size`` unless said) may not go. Per key/value head, by the mean over the query heads that share it.
    """

    recent: int | None = None
    steps: int = 1024
    seed: int = 0
    layer: int | None = field(default=None, kw_only=True)
    forms: ClassVar[Forms] = {"keyformer": {}}
    numbers: ClassVar[tuple[str, ...]] = ("received",)
    additive: ClassVar[bool] = True

    def check(self, size: int | None) -> None:
        super().check(size)
        self._whole("steps", self.steps, at_least=1)
        if self.recent is not None:
            self._whole("recent", self.recent, at_least=0, at_most=size)

    def update(self, seen: Seen) -> dict[str, Tensor]:
        K, G = seen.weights.shape[1:3]
        head = torch.arange(K * G, device=seen.clock.device).view(K, G, 1)
        drawn = self.draw(head, seen.positions[:, :, None], seen.clock[:, None, None, None]).to(seen.weights.dtype)
        tau = 1 + (seen.clock.to(drawn.dtype) / self.steps).clamp(max=1)[:, None, None, None]
        logits = seen.weights.log() - (-drawn.log()).log()  # but for a constant of each query; −inf on empty rows
        return {"received": seen.numbers["received"] + (logits / tau).softmax(-1).mean(2)}

    def score(self, seen: Seen) -> Tensor:
        assert isinstance(self.size, int)
        recent = 3 * self.size // 10 if self.recent is None else self.recent
        return seen.numbers["received"].masked_fill(seen.positions > seen.clock[:, None, None] - recent, torch.inf)


@dataclass(frozen=True)
class CaM(Drawn, Sinks):
    """Cache merging (CaM, ICML 2024; zyxxmu/cam at df5e076): rows go as under :class:`Sinks`, but may leave something behind.

    The value of the row that goes, divided by ``into``, is added to the values of the ``into`` rows after it, or as many as
    there are: with a probability that is its attention divided by the mean attention of the rows after it, 1 at most. Each
    key/value head draws by itself, by the mean over the query heads that share it.
    """

    into: int = 32
    seed: int = 0
    layer: int | None = field(default=None, kw_only=True)
    forms: ClassVar[Forms] = {"cam": {}}
    blind: ClassVar[bool] = False
    merges: ClassVar[bool] = True

    __str__ = Reduction.__str__

    def check(self, size: int | None) -> None:
        super().check(size)
        self._whole("into", self.into, at_least=1)

    def merge(self, seen: Seen, values: Tensor, row: Tensor) -> Tensor:
        weights, row = seen.weights.mean(2), row[..., None]  # (B, K, R), (B, K, 1)
        position = seen.positions.gather(2, row)
        after = seen.positions > position
        mean = (weights * after).sum(-1, keepdim=True) / after.sum(-1, keepdim=True)
        head = torch.arange(row.shape[1], device=row.device)[:, None]
        drawn = self.draw(head, position, seen.clock[:, None, None]) * mean < weights.gather(2, row)  # (B, K, 1)
        near = after & (seen.positions <= position + self.into) & drawn  # the rows after it have no gaps
        share = values.gather(2, row[..., None].expand(-1, -1, 1, values.shape[3])) / self.into  # (B, K, 1, D)
        return values + near[..., None] * share
