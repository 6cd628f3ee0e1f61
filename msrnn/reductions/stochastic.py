"""Operators that use random numbers. The numbers are hashes (``hash_rng.py``), so a run can be repeated, split and undone."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import Error
from .contract import Observation, Reduction, SpecNames, is_recent
from .hash_rng import uniform
from .observation_window import LastQueries
from .tova_paper import Sinks


class StochasticReduction(Reduction):
    """Base class: a seed, and the index of the layer, which ``for_layer`` sets so that layers use different numbers."""

    seed: int
    layer: int | None

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("seed", self.seed, at_least=0)
        if self.layer is not None:
            self._check_int("layer", self.layer, at_least=0)

    def for_layer(self, layer: int) -> Reduction:
        return replace(super().for_layer(layer), layer=layer)  # type: ignore[call-arg]  # a field of every subclass

    def draw(self, head: Tensor, positions: Tensor, clock: Tensor) -> Tensor:
        """Return random numbers in (0, 1), one per element of the broadcast tensors."""
        return uniform(self.seed, self.layer or 0, head, positions, clock)


@dataclass(frozen=True)
class Random(StochasticReduction):
    """Eviction of a random row, uniformly and independently in each key/value head: the baseline of all operators."""

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
    r"""Keyformer (arXiv:2403.09054; d-matrix-ai/keyformer-llm at 5bbbcb1): the score is accumulated noisy attention.

    The noisy attention of a query is $\mathrm{softmax}((z + \zeta) / \tau)$ with the attention logits z and Gumbel noise ζ. The
    temperature τ increases from 1 to 2 over the first ``steps`` tokens; the paper increases it over the generated text, because
    the paper knows its length. The ``recent`` newest rows are protected; the default is 30 % of ``size``. One decision per
    key/value head, by the mean over its query heads.
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
        weights, positions, clock = (
            observation.weights,
            observation.positions[:, :, None],
            observation.clock[:, None, None, None],
        )
        K, G = weights.shape[1:3]
        head = torch.arange(K * G, device=clock.device).view(K, G, 1)
        drawn = self.draw(head, positions, clock).to(weights.dtype)
        tau = 1 + (clock.to(weights.dtype) / self.steps).clamp(max=1)
        logits = weights.log() - (-drawn.log()).log()  # up to a constant per query; −inf for absent rows
        return {"accumulated_attention": observation.row_stats["accumulated_attention"] + (logits / tau).softmax(-1).mean(2)}

    def score(self, observation: Observation) -> Tensor:
        assert isinstance(self.size, int)
        recent = 3 * self.size // 10 if self.recent is None else self.recent
        return observation.row_stats["accumulated_attention"].masked_fill(is_recent(observation, recent), torch.inf)


@dataclass(frozen=True)
class VaSE(StochasticReduction, LastQueries):
    r"""Value-aware stochastic eviction (VaSE-AttnV, arXiv:2606.03928; terarachang/VaSE at 58e69db).

    The rows of the last ``window`` tokens are protected. Of the other rows, the ``large`` rows with the largest range of the
    value are protected, which is the maximum of its channels minus their minimum; the first ``sinks`` tokens count as the
    largest, and of equal ranges the oldest rows are protected. The rest is sampled without replacement, with probabilities
    proportional to the attention of the last ``window`` queries, and the row that the sample leaves out is evicted. So the
    score is the logarithm of this attention plus Gumbel noise (arXiv:1903.06059), which is drawn again at every token. One
    decision per key/value head, by the mean over its query heads.

    From the code: the order of the rules, the first 4 tokens, and a quarter of ``size`` as the default of ``large``. The code
    evicts once per 64 tokens, with the last 64 queries over all rows, and averages attention over 5 neighbouring rows. Here one
    row is evicted per token, each query has seen the rows of its own step, and nothing is averaged over rows, because retained
    rows are no neighbours. Chosen here: 32 queries.
    """

    large: int | None = None
    sinks: int = 4
    seed: int = 0
    layer: int | None = field(default=None, kw_only=True)
    spec_names: ClassVar[SpecNames] = {"vase": {}}
    needs_values: ClassVar[bool] = True
    depends_on_row_layout: ClassVar[bool] = False

    def validate(self, size: int | None) -> None:
        super().validate(size)
        assert isinstance(size, int)
        self._check_int("sinks", self.sinks, at_least=0, at_most=size)
        if self.large is not None:
            self._check_int("large", self.large, at_least=1, at_most=size)
        others = max(self._n_large(size), self.sinks)
        if self.window + others > size:
            raise Error(f"VaSE: window {self.window} and {others} rows of large or sinks exceed size {size}; expected fewer")

    def _n_large(self, size: int) -> int:
        return max(1, size // 4) if self.large is None else self.large

    def score(self, observation: Observation) -> Tensor:
        assert isinstance(self.size, int)
        assert observation.values is not None
        positions, attention = observation.positions, observation.row_stats["read"].sum(-1)  # (B, K, R) both
        is_candidate = (positions >= 0) & ~is_recent(observation, self.window)
        extent = (observation.values.amax(-1) - observation.values.amin(-1)).to(attention.dtype)
        extent = _without_rounding_noise(extent).masked_fill(positions < self.sinks, torch.inf)
        order = positions.argsort(dim=-1)  # of equal ranges the oldest come first
        largest = extent.masked_fill(~is_candidate, -torch.inf).gather(-1, order).argsort(dim=-1, descending=True, stable=True)
        protected = order.gather(-1, largest[..., : self._n_large(self.size)])
        is_protected = (positions < self.sinks).scatter(-1, protected, True)
        head = torch.arange(positions.shape[1], device=positions.device)[:, None]
        drawn = self.draw(head, positions, observation.clock[:, None, None]).to(attention.dtype)
        noisy = attention.log() - (-drawn.log()).log()
        return torch.where(is_candidate & ~is_protected, noisy, torch.inf)


@dataclass(frozen=True)
class CaM(StochasticReduction, Sinks):
    """Cache merging (CaM, ICML 2024; zyxxmu/cam at df5e076): rows are evicted as by :class:`Sinks`, values may be merged.

    The evicted value, divided by ``merge_window``, is added to the values of the next ``merge_window`` rows, or of as many as
    there are. The probability is the attention of the evicted row divided by the mean attention of the later rows, at most 1.
    Each key/value head draws independently, with the mean weights of its query heads.
    """

    merge_window: int = 32
    seed: int = 0
    layer: int | None = field(default=None, kw_only=True)
    spec_names: ClassVar[SpecNames] = {"cam": {}}
    depends_on_row_layout: ClassVar[bool] = False

    def validate(self, size: int | None) -> None:
        super().validate(size)
        self._check_int("merge_window", self.merge_window, at_least=1)

    def merge(self, observation: Observation, values: Tensor, row: Tensor) -> Tensor:
        weights, row = observation.weights.mean(2), row[..., None]  # (B, K, R), (B, K, 1)
        position = observation.positions.gather(2, row)
        later = observation.positions > position
        mean = (weights * later).sum(-1, keepdim=True) / later.sum(-1, keepdim=True)
        head = torch.arange(row.shape[1], device=row.device)[:, None]
        merges = self.draw(head, position, observation.clock[:, None, None]) * mean < weights.gather(2, row)  # (B, K, 1)
        receives = later & (observation.positions <= position + self.merge_window) & merges  # later positions have no gaps
        share = values.gather(2, row[..., None].expand(-1, -1, 1, values.shape[3])) / self.merge_window  # (B, K, 1, D)
        return values + receives[..., None] * share


def _without_rounding_noise(x: Tensor) -> Tensor:
    """Return ``x`` rounded to 16 bits, so that numbers of one token that differ by rounding are equal."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2**16).round(), exponent - 16)
