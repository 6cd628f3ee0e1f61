"""Operators that draw lots. What they draw is a hash (``chance.py``), so a run can be repeated, split and taken back."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from .contract import Observation, Reduction, SpecNames, is_recent
from .core import Sinks
from .hash_rng import uniform


class StochasticReduction(Reduction):
    """What these have in common: a seed, and the layer, which ``at`` fills in, so that layers draw apart."""

    seed: int
    layer: int | None

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("seed", self.seed, at_least=0)
        if self.layer is not None:
            self._check_int("layer", self.layer, at_least=0)

    def for_layer(self, layer: int) -> Reduction:
        return replace(super().for_layer(layer), layer=layer)  # type: ignore[call-arg]  # those who draw have one

    def draw(self, head: Tensor, positions: Tensor, clock: Tensor) -> Tensor:
        """Numbers between 0 and 1, broadcast."""
        return uniform(self.seed, self.layer or 0, head, positions, clock)


@dataclass(frozen=True)
class Random(StochasticReduction):
    """Any row goes, each as likely as the others, of each key/value head by itself: what an operator has to beat."""

    seed: int = 0
    layer: int | None = field(default=None, kw_only=True)
    spec_names: ClassVar[SpecNames] = {"random": {}}
    depends_on_row_layout: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False

    def score(self, observation: Observation) -> Tensor:
        head = torch.arange(observation.positions.shape[1], device=observation.positions.device)[:, None]
        return self.draw(head, observation.positions, observation.clock[:, None, None])


@dataclass(frozen=True)
class Keyformer(StochasticReduction):
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
    spec_names: ClassVar[SpecNames] = {"keyformer": {}}
    depends_on_row_layout: ClassVar[bool] = False
    stat_names: ClassVar[tuple[str, ...]] = ("accumulated_attention",)
    update_is_additive: ClassVar[bool] = True

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("steps", self.steps, at_least=1)
        if self.recent is not None:
            self._check_int("recent", self.recent, at_least=0, at_most=size)

    def update(self, observation: Observation) -> dict[str, Tensor]:
        K, G = observation.weights.shape[1:3]
        head = torch.arange(K * G, device=observation.clock.device).view(K, G, 1)
        drawn = self.draw(head, observation.positions[:, :, None], observation.clock[:, None, None, None]).to(
            observation.weights.dtype
        )
        tau = 1 + (observation.clock.to(drawn.dtype) / self.steps).clamp(max=1)[:, None, None, None]
        logits = observation.weights.log() - (-drawn.log()).log()  # but for a constant of each query; −inf on empty rows
        return {"accumulated_attention": observation.row_stats["accumulated_attention"] + (logits / tau).softmax(-1).mean(2)}

    def score(self, observation: Observation) -> Tensor:
        assert isinstance(self.size, int)
        recent = 3 * self.size // 10 if self.recent is None else self.recent
        return observation.row_stats["accumulated_attention"].masked_fill(is_recent(observation, recent), torch.inf)


@dataclass(frozen=True)
class CaM(StochasticReduction, Sinks):
    """Cache merging (CaM, ICML 2024; zyxxmu/cam at df5e076): rows go as under :class:`Sinks`, but may leave something behind.

    The value of the row that goes, divided by ``into``, is added to the values of the ``into`` rows after it, or as many as
    there are: with a probability that is its attention divided by the mean attention of the rows after it, 1 at most. Each
    key/value head draws by itself, by the mean over the query heads that share it.
    """

    merge_window: int = 32
    seed: int = 0
    layer: int | None = field(default=None, kw_only=True)
    spec_names: ClassVar[SpecNames] = {"cam": {}}
    depends_on_row_layout: ClassVar[bool] = False

    __str__ = Reduction.__str__

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("merge_window", self.merge_window, at_least=1)

    def merge(self, observation: Observation, values: Tensor, row: Tensor) -> Tensor:
        weights, row = observation.weights.mean(2), row[..., None]  # (B, K, R), (B, K, 1)
        position = observation.positions.gather(2, row)
        after = observation.positions > position
        mean = (weights * after).sum(-1, keepdim=True) / after.sum(-1, keepdim=True)
        head = torch.arange(row.shape[1], device=row.device)[:, None]
        drawn = self.draw(head, position, observation.clock[:, None, None]) * mean < weights.gather(2, row)  # (B, K, 1)
        near = after & (observation.positions <= position + self.merge_window) & drawn  # the rows after it have no gaps
        share = values.gather(2, row[..., None].expand(-1, -1, 1, values.shape[3])) / self.merge_window  # (B, K, 1, D)
        return values + near[..., None] * share
