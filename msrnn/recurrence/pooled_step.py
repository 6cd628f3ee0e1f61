"""Attend and reduce for pooled rows: heads that share a budget hold their rows in one dimension, in any order.

The operator observes all rows for each head, and those of other heads as absent. The results are those of
:mod:`.budget_evictions`.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..layers.attention import LogitRule, attention_logits, weighted_values
from ..reductions.contract import EMPTY
from ..reductions.shared_budget import SharedBudget
from ..state.multistate import MultiState
from ..state.pooled_rows import PooledMultiState
from ..state.quantised_rows import encode_rows
from .budget_evictions import lowest_of_layer
from .operator_calls import retention_scores
from .transition import Attended, Writes, next_stats, replace_active, run_or_defer


def attend_pooled(
    q: Tensor, k: Tensor, v: Tensor, rows: dict[str, Tensor], visible: Tensor, rule: LogitRule
) -> tuple[Tensor, Tensor]:
    """Write ``k`` and ``v (B, K, D)`` into the last K of R rows, and attend to the rows of each head.

    Args:
        q: ``(B, N, D)``.
        rows: keys and values ``(B, 1, R, D)`` by name, and scales ``(B, 1, R)`` if they are int8.
        visible: ``(B, K, R)`` bool, the rows of each head.
        rule: of the attention logits.

    Returns:
        The attention output ``(B, N, D)``, and the weights ``(B, K, G, R)``, 0 for rows of other heads.
    """
    K = k.shape[1]
    for name, row in encode_rows(k, v, "key_scales" in rows).items():
        rows[name][:, 0, -K:] = row
    key_scales, value_scales = (rows[name][:, 0] if name in rows else None for name in ("key_scales", "value_scales"))
    logits = attention_logits(q, rows["keys"][:, 0], key_scales, rule).unflatten(1, (K, -1))  # (B, K, G, R)
    weights = logits.masked_fill(~visible[:, :, None], -torch.inf).softmax(dim=-1)  # a NaN key is not added to other heads
    return weighted_values(weights.flatten(1, 2), rows["values"][:, 0], value_scales, q.dtype), weights


def reduce_pooled(
    grown: PooledMultiState, attended: Attended, clock: Tensor, active: Tensor | None, writes: Writes | None = None
) -> PooledMultiState:
    """Evict the rows in excess of the budget, as :func:`~.transition.reduce` does for one row per head.

    ``grown``: M + K rows, those of the token last. The result has all of them while they are within the budget. From then on
    the rows of the token that stay are written over evicted ones.
    """
    operator, R, K = grown.reduction, grown.positions.shape[2], grown.n_heads
    assert isinstance(operator, SharedBudget)
    observation = attended.observe(_heads_of(grown))
    observation = observation._replace(row_stats=next_stats(operator, observation, active))
    row_stats = replace_active(active, {name: grown.of_rows(x) for name, x in observation.row_stats.items()}, grown.row_stats)
    if active is not None:
        grown.positions[..., R - K :].masked_fill_(~active[:, None, None], EMPTY)
    n_kept = max(R - K, min(R, grown.capacity))
    if n_kept == R:
        return replace(grown, clock=clock, row_stats=row_stats)
    score = grown.of_rows(retention_scores(operator, observation, active))[:, 0]
    evicted = lowest_of_layer(operator, score, grown.positions[:, 0], grown.row_heads[:, 0], K)
    source, target = _moves(evicted | grown.empty[:, 0], n_kept)
    run_or_defer([partial(_move, x, source, target) for x in grown.stored.values()], writes)
    rows: dict[str, Any] = {name: x[:, :, :n_kept] for name, x in grown.stored.items()}
    row_stats = {name: _move(x, source, target)[:, :, :n_kept].clone() for name, x in row_stats.items()}
    return replace(grown, **rows, clock=clock, row_stats=row_stats)


def _heads_of(grown: PooledMultiState) -> MultiState:
    """Return the rows as the operator observes them, ``(B, K, R, …)``: for each head, those of other heads are absent."""
    rows = {name: x.expand(-1, grown.n_heads, *x.shape[2:]) for name, x in grown.rows.items()}
    rows["positions"] = rows["positions"].masked_fill(~grown.is_of_head, EMPTY)
    return grown.with_rows(rows, grown.clock)


def _moves(free: Tensor, n_kept: int) -> tuple[Tensor, Tensor]:
    """Return the rows ``(B, R - n_kept)`` to move, and those to overwrite, so that the first ``n_kept`` of R rows remain.

    ``free``: ``(B, R)`` bool, at least ``R - n_kept`` True in each sequence. A row that stays in its place is its own target.
    """
    target = (~free).byte().argsort(dim=-1, stable=True)[:, : free.shape[1] - n_kept]
    is_target = torch.zeros_like(free).scatter(1, target, True)[:, n_kept:]
    return n_kept + is_target.byte().argsort(dim=-1, stable=True), target


def _move(x: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Write rows ``source (B, n)`` of ``x (B, 1, R, …)`` over the rows ``target (B, n)``, in place."""
    batch = torch.arange(len(x), device=x.device)[:, None]
    x[:, 0].index_put_((batch, target), x[:, 0][batch, source])
    return x
