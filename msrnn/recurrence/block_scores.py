"""Scores of many tokens at once, under given evictions: each token becomes one entry of the operator's batch."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..layers.attention import mask_logits
from ..reductions.contract import EMPTY, Observation, Reduction
from .block_fields import BlockFields
from .block_layout import BlockLayout
from .eviction import above_lowest
from .operator_calls import retention_scores, update_stats


@dataclass(frozen=True)
class EvictionBlock:
    """T tokens of one layer and the R = S + T rows that any of them can attend to: the S rows before them, then their own.

    Attributes:
        reduction: the operator.
        layout: the part that does not depend on scores.
        logits: ``(B, K, G, T, R)`` attention logits in at least float32, −inf for rows that are not visible; zeros for an
            operator that does not need weights.
        positions: ``(B, K, R)`` int64, ascending, except −1 for empty rows and for tokens that are not read.
        last_visible: ``(B, 1 or K, R)`` int64, the last token that can attend to the row: the token at which the row is
            evicted, T if it is retained, −1 if it is empty. One head if it is the same for all heads.
        row_stats: statistics before the first token, ``(B, K, R)`` or ``(B, K, R, n)`` each.
        fields: the other fields that the operator reads.
        n_learned: number of learned rows, the first ones.
        heads: the heads of the block, if other processes hold others; None: all heads of the model.
    """

    reduction: Reduction
    layout: BlockLayout
    logits: Tensor
    positions: Tensor
    last_visible: Tensor
    row_stats: dict[str, Tensor]
    fields: BlockFields
    n_learned: int = 0
    heads: RankHeads | None = None

    @property
    def T(self) -> int:
        """Number of tokens."""
        return self.layout.clock.shape[1]

    def visible(self, start: int, stop: int) -> Tensor:
        """Return ``(B, 1 or K, t, R)`` bool: True for rows that tokens ``start`` to ``stop`` can attend to."""
        visible = self.layout.visible[:, :, start:stop]
        if self.last_visible is self.layout.last_visible:
            return visible
        return (self.last_visible[:, :, None] >= torch.arange(start, stop, device=visible.device)[:, None]) & visible

    def with_evictions(self, rows: Tensor, start: int = 0) -> "EvictionBlock":
        """Return the block after row ``rows[:, t] (B, 1 or K)`` is evicted at token ``start + t``; −1 evicts no row."""
        heads, R = max(self.last_visible.shape[1], rows.shape[2]), self.last_visible.shape[2]
        index = torch.where(rows < 0, R, rows).expand(-1, -1, heads).transpose(1, 2)  # (B, 1 or K, t); R is a column to drop
        step = torch.arange(start, start + rows.shape[1], device=rows.device).expand_as(index)
        padded = torch.cat((self.last_visible, self.last_visible[..., :1]), dim=-1).expand(-1, heads, -1)
        return replace(self, last_visible=padded.scatter(2, index, step)[..., :R])


@dataclass(frozen=True)
class BlockScores:
    """Attention weights, statistics and scores of t tokens under given evictions.

    Attributes:
        weights: ``(B, K, G, t, R)``.
        row_stats: statistics after each token, ``(B, t, K, R)`` or ``(B, t, K, R, n)`` each.
        score: ``(B, t, 1 or K, R)``, arbitrary for absent rows, +inf for learned rows.
        absent: ``(B, t, 1 or K, R)`` bool, True for rows that the token cannot attend to.
        n_learned: number of learned rows, the first ones.
        tie_tolerance: as in :class:`Reduction`.
    """

    weights: Tensor
    row_stats: dict[str, Tensor]
    score: Tensor
    absent: Tensor
    n_learned: int
    tie_tolerance: float

    @property
    def excluded(self) -> Tensor:
        """``(B, t, 1 or K, R)`` bool: True for absent and learned rows, which cannot be evicted."""
        if not self.n_learned:
            return self.absent
        return self.absent | (torch.arange(self.absent.shape[-1], device=self.absent.device) < self.n_learned)

    def lowest_row(self, evicts: Tensor) -> Tensor:
        """Return the row to evict, ``(B, t, 1 or K)``: the first of the lowest scores; −1 where no row is evicted."""
        higher = above_lowest(self.score, self.excluded, self.tie_tolerance)
        return torch.where(evicts[..., : higher.shape[2]], higher.byte().argmin(-1), -1)

    def lowest_rows(self, k: int, ties: bool) -> Tensor:
        """Return the k rows of the lowest scores in order, ``(B, t, 1 or K, k)``, to propose evictions.

        ``ties``: sort equal scores by position, which takes longer. With a tie tolerance, scores are rounded to 16 bits first,
        so that most near-ties become equal. A wrong proposal costs an iteration and does not change the result.
        """
        score = self.score.clamp(max=torch.finfo(self.score.dtype).max)  # a row of score +inf comes before an excluded row
        if self.tie_tolerance:
            mantissa, exponent = torch.frexp(score)
            score = torch.ldexp((mantissa * 2**16).round(), exponent - 16)
        score = torch.where(self.excluded, torch.inf, score)
        if ties or self.tie_tolerance:
            return score.sort(dim=-1, stable=True).indices[..., :k]
        return score.topk(k, largest=False).indices

    def first_tokens(self, n: int) -> "BlockScores":
        """Return the scores of the first n tokens."""
        row_stats = {name: x[:, :n] for name, x in self.row_stats.items()}
        weights, score, absent = self.weights[:, :, :, :n], self.score[:, :n], self.absent[:, :n]
        return replace(self, weights=weights, row_stats=row_stats, score=score, absent=absent)

    def last_stats(self) -> dict[str, Tensor]:
        """Return a copy of the statistics after the last token, ``(B, K, R)`` each."""
        return {name: x[:, -1].clone() for name, x in self.row_stats.items()}


def score_tokens(
    block: EvictionBlock,
    start: int,
    stop: int,
    row_stats: dict[str, Tensor],
    call_score: bool = True,
    every_row: bool = True,
) -> BlockScores:
    """Call the operator for tokens ``start`` to ``stop``.

    Args:
        block: the tokens, and the evictions to assume.
        start, stop: the first of t tokens, and the one after the last. With statistics that are not additive t is 1.
        row_stats: statistics before token ``start``.
        call_score: False: scores are 0.
        every_row: True: score batch rows without an eviction as well, for a class that depends on the row layout.
    """
    operator, visible = block.reduction, block.visible(start, stop)  # (B, 1 or K, t, R)
    absent, read = ~visible.transpose(1, 2), block.layout.active[:, start:stop]  # (B, t, 1 or K, R), (B, t)
    weights = _attention_weights(block, start, stop, visible)
    observation = _observe(block, start, stop, weights, absent)
    active = read.flatten() if operator.depends_on_row_layout else None  # (B t,)
    after = dict[str, Tensor]()
    if row_stats:
        after = _stats_after_each(operator, observation, active, row_stats, unchanged=absent | ~read[..., None, None])
    if call_score:
        observation = observation._replace(row_stats={name: x.flatten(0, 1) for name, x in after.items()})
        n_rows = operator.size + block.n_learned + 1 if isinstance(operator.size, int) and not every_row else None
        score = retention_scores(operator, observation, active, n_rows, heads=block.heads).unflatten(0, read.shape)
        if block.n_learned:
            score[..., : block.n_learned] = torch.inf
    else:
        score = weights.new_zeros(()).expand(*read.shape, 1, absent.shape[-1])
    return BlockScores(weights, after, score, absent[:, :, : score.shape[2]], block.n_learned, operator.tie_tolerance)


def _attention_weights(block: EvictionBlock, start: int, stop: int, visible: Tensor) -> Tensor:
    """Return the attention weights of the tokens, ``(B, K, G, t, R)``; zeros for an operator that does not need them."""
    logits = block.logits[..., start:stop, :]
    if not block.reduction.needs_weights:
        return logits
    is_masked = block.last_visible is block.layout.last_visible  # without evictions the mask of the logits is right
    return (logits if is_masked else mask_logits(logits, visible[:, :, None])).softmax(dim=-1)


def _observe(block: EvictionBlock, start: int, stop: int, weights: Tensor, absent: Tensor) -> Observation:
    """Return the observation of tokens without statistics: each token is one entry of the batch, ``(B t, …)``."""
    operator, positions = block.reduction, block.positions[:, None]  # (B, 1, K, R)
    if operator.depends_on_row_layout or operator.depends_on_other_positions:
        positions = positions.masked_fill(absent, EMPTY)  # (B, t, K, R)
    return Observation(
        weights.movedim(3, 1).flatten(0, 1),
        positions.expand(-1, stop - start, -1, -1).flatten(0, 1),
        block.layout.clock[:, start:stop].flatten(),
        {},
        **block.fields.of_tokens(start, stop, weights),
    )


def _stats_after_each(
    operator: Reduction, observation: Observation, active: Tensor | None, row_stats: dict[str, Tensor], unchanged: Tensor
) -> dict[str, Tensor]:
    """Return the statistics after each token, ``(B, t, K, R)`` or ``(B, t, K, R, n)`` each.

    The terms of an additive ``update`` are added up. For any other ``update`` t is 1.

    Args:
        observation: of the tokens, without statistics.
        active: ``(B t,)`` bool, as of :func:`~.operator_calls.update_stats`.
        row_stats: statistics before the first token.
        unchanged: ``(B, t, 1 or K, R)`` bool, rows that a token cannot attend to, and all rows for a token that is not read.
    """
    (B, T), additive = unchanged.shape[:2], operator.update_is_additive
    if additive:
        before = {name: x.new_zeros(B * T, *x.shape[1:]) for name, x in row_stats.items()}
    else:
        before = {name: x[:, None].expand(-1, T, *x.shape[1:]).flatten(0, 1) for name, x in row_stats.items()}
    after = update_stats(operator, observation._replace(row_stats=before), active)
    stats = dict[str, Tensor]()
    for name, old in row_stats.items():
        new, keep = after[name].unflatten(0, (B, T)), unchanged.view(*unchanged.shape, *(1,) * (old.ndim - 3))
        if additive:
            terms = torch.where(keep, 0, new)
            terms[:, :1] += old[:, None]
            stats[name] = terms.cumsum_(1)  # in the order of the step loop
        else:
            stats[name] = torch.where(keep, old[:, None], new)
    return stats
