"""Evictions in layers in which heads hold different numbers of rows: one size per head, or a number of rows that they share."""

from dataclasses import replace

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..reductions.contract import EMPTY, Observation
from ..reductions.head_budgets import HeadBudget
from ..reductions.shared_budget import SharedBudget
from ..state.jagged_rows import refuse_vmap
from ..state.multistate import MultiState
from .all_heads import heads_of_rank
from .eviction import above_lowest
from .operator_calls import retention_scores

AFTER_EVERY_POSITION = torch.iinfo(torch.int64).max


def evict_by_budget(
    grown: MultiState,
    observation: Observation,
    gathered: RankHeads | None,
    row_stats: dict[str, Tensor],
    clock: Tensor,
    active: Tensor | None,
) -> MultiState:
    """Return H after the rows in excess are evicted.

    It has at most as many columns as one head may hold rows. With an unbounded head the S + 1 columns of ``grown`` stay.

    Args:
        grown: S + 1 rows, the token's own last, with a :class:`HeadBudget`.
        observation: of these rows, or of those of the heads of all ranks, with updated statistics.
        gathered: the heads of this rank, if the observation is that of all ranks; otherwise None.
        row_stats: the statistics to keep.
        clock, active: as in :func:`~msrnn.recurrence.transition.reduce`.
    """
    refuse_vmap(grown)
    operator, positions = grown.reduction, observation.positions
    assert isinstance(operator, HeadBudget)
    if active is not None:
        own = torch.arange(positions.shape[2], device=positions.device) == positions.shape[2] - 1
        positions = positions.masked_fill(own & ~active[:, None, None], EMPTY)
    if positions.shape[2] > operator.rows_before_eviction + grown.n_learned:
        score = retention_scores(operator, observation, active)
        positions = _without_evicted(operator, score, positions, grown.heads if gathered is None else None)
    positions = heads_of_rank(gathered, positions)
    kept = replace(grown, positions=positions, clock=clock, row_stats=row_stats, buffer=None, no_empty_rows=False)
    if kept.capacity is None:  # a token that is not read leaves a column without a row
        return kept if active is None else kept.sorted_by_position()
    return kept.sorted_by_position() if positions.shape[2] > kept.capacity else kept


def _without_evicted(operator: HeadBudget, score: Tensor, positions: Tensor, heads: RankHeads | None) -> Tensor:
    """Return the positions ``(B, K, R)`` with −1 for evicted rows.

    ``heads``: those of the arguments, in a split cell. Under a shared budget the ranks gather scores and positions, because no
    rank can decide alone. They have the same R (:func:`~msrnn.state.split_heads.with_columns_of_all_ranks`).
    """
    if heads is None or not isinstance(operator, SharedBudget):
        return positions.masked_fill(rows_to_evict(operator, score, positions), EMPTY)
    evicted = rows_to_evict(operator, heads.gather(score, 1), heads.gather(positions, 1))
    return positions.masked_fill(heads.own(evicted, 1), EMPTY)


def rows_to_evict(operator: HeadBudget, score: Tensor, positions: Tensor) -> Tensor:
    """Return the rows to evict after one token, ``(B, K, R)`` bool.

    Args:
        operator: which rows exceed its budget: at most one in each head, or K in the layer.
        score: ``(B, K, R)`` without NaN, arbitrary for absent and learned rows.
        positions: ``(B, K, R)``, −1 for absent and −2 for learned rows.
    """
    excluded = positions < 0
    if isinstance(operator, SharedBudget):
        B, K, R = positions.shape
        row_heads = torch.arange(K, device=positions.device).repeat_interleave(R).expand(B, -1)
        return lowest_of_layer(operator, score.flatten(1), positions.flatten(1), row_heads, K).unflatten(1, (K, R))
    row = _lowest(score, positions, excluded, operator.tie_tolerance)  # (B, K)
    evicts = operator.evicts((~excluded).sum(-1))
    return torch.zeros_like(excluded).scatter(-1, row[..., None], evicts[..., None])


def rows_to_evict_at_once(operator: HeadBudget, score: Tensor, positions: Tensor) -> Tensor:
    """Return all rows in excess of the budget, ``(B, K, R)`` bool: those that :func:`rows_to_evict` selects one by one.

    The arguments are those of :func:`rows_to_evict`, with any number of rows. Scores are compared without a tolerance.
    """
    excluded = positions < 0
    n_rows = (~excluded).sum(-1)  # (B, K)
    order = _eviction_order(score, positions, excluded)
    if isinstance(operator, SharedBudget):
        excluded = excluded | (order >= n_rows[..., None] - operator.floor_rows)  # heads keep these rows in any case
        order = _eviction_order(score.flatten(1), positions.flatten(1), excluded.flatten(1)).unflatten(1, positions.shape[1:])
    return (order < operator.excess(n_rows)[..., None]) & ~excluded


def _eviction_order(score: Tensor, positions: Tensor, excluded: Tensor) -> Tensor:
    """Return the index of each row in the order of eviction, ``(…, R)`` int64, 0 for the row that is evicted first.

    That is the row of the lowest score, of equal scores the oldest position, of equal positions the first row. Excluded rows
    are last.
    """
    order = positions.masked_fill(excluded, AFTER_EVERY_POSITION).argsort(dim=-1, stable=True)
    by_score = score.masked_fill(excluded, torch.inf).gather(-1, order).argsort(dim=-1, stable=True)
    return order.gather(-1, by_score).argsort(dim=-1)


def lowest_of_layer(operator: SharedBudget, score: Tensor, positions: Tensor, row_heads: Tensor, K: int) -> Tensor:
    """Return the rows of a layer to evict after one token, ``(B, R)`` bool: at most K.

    Args:
        operator: the budget. Heads with ``floor_rows`` rows evict none.
        score, positions: of all rows of the layer, ``(B, R)``; otherwise as of :func:`rows_to_evict`.
        row_heads: ``(B, R)`` int64, the head of each row.
        K: number of heads.
    """
    held, head = positions >= 0, torch.arange(K, device=positions.device)
    evicted = torch.zeros_like(held)
    n_rows = ((row_heads[:, None] == head[:, None]) & held[:, None]).sum(-1)  # (B, K)
    order = K * positions + row_heads  # of equal positions that of the first head
    for _ in range(K):  # one after the other
        evicts = operator.evicts(n_rows)  # (B, 1)
        unavailable = ~held | evicted | (n_rows <= operator.floor_rows).gather(1, row_heads)
        row = _lowest(score, order, unavailable, operator.tie_tolerance)[:, None]  # (B, 1)
        evicted = torch.zeros_like(evicted).scatter(1, row, evicts) | evicted
        n_rows = n_rows - (evicts & (head == row_heads.gather(1, row))).long()
    return evicted


def _lowest(score: Tensor, positions: Tensor, excluded: Tensor, tie_tolerance: float) -> Tensor:
    """Return the row of the lowest score, ``(…, R) -> (…)``; of equal scores the oldest position, of these the first row."""
    higher = above_lowest(score, excluded, tie_tolerance)
    return positions.masked_fill(higher, AFTER_EVERY_POSITION).argmin(-1)
