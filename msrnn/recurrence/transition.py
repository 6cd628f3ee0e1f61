"""Append, attend, reduce: one token of one layer, from the KV cache before it to the KV cache after it.

The functions do not synchronise with the device. Once the cache is full, no shape changes.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..layers.attention import SCALED_PRODUCT, LogitRule, attend
from ..layers.differentiation import is_differentiated
from ..reductions.contract import EMPTY, Observation, Reduction
from ..reductions.head_budgets import HeadBudget
from ..reductions.shared_budget import SharedBudget
from ..state.multistate import MultiState
from ..state.quantised_rows import dequantise_rows, replace_values
from ..state.split_heads import with_columns_of_all_ranks
from .all_heads import gather_observation, heads_of_rank, heads_to_gather
from .budget_evictions import evict_by_budget
from .eviction import select_evicted_row
from .operator_calls import merge_evicted_value, retention_scores, update_stats

Writes = list[Callable[[], object]]
"""Writes over rows of the state before a step in place, to be done when nothing can fail any more."""


class Attended(NamedTuple):
    """The attention of one token, which the operator may read when it reduces H."""

    weights: Tensor
    """``(B, K, G, R)``, the attention probabilities."""
    output: Tensor | None = None
    """``(B, N, D)``, the attention output. This field and the next two are None only if the operator does not need them."""
    query: Tensor | None = None
    """``(B, N, D)``, as attention used it."""
    x: Tensor | None = None
    """``(B, E)``, the input of the layer, before its norm."""
    rotated_keys: Tensor | None = None
    """``(B, K, R, D)``, the keys as the query attended to them; None: as they are stored."""

    def observe(self, H: MultiState) -> Observation:
        """Return the observation that the operator of ``H`` receives; ``H`` has R rows. Evictions are not differentiated."""
        operator, weights = H.reduction, self.weights
        keys = values = output = queries = x = None
        if operator.needs_keys:
            keys = self.rotated_keys
            keys = dequantise_rows(H.keys, H.key_scales, weights.dtype) if keys is None else keys
            keys = keys.detach().to(weights.dtype)
        if operator.needs_values:
            values = dequantise_rows(H.values, H.value_scales, weights.dtype).detach().to(weights.dtype)
        if operator.needs_output and self.output is not None:
            output = self.output.detach().unflatten(1, weights.shape[1:3])  # (B, K, G, D)
        if operator.needs_queries and self.query is not None:
            queries = self.query.detach().unflatten(1, weights.shape[1:3])
        if operator.needs_input and self.x is not None:
            x = self.x.detach()
        observed = weights.detach() if operator.needs_weights else weights.new_zeros(()).expand(weights.shape)
        return Observation(observed, H.positions, H.clock, H.row_stats, keys, values, output, queries, x)


def append_attend_reduce(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    H: MultiState,
    clock: Tensor,
    active: Tensor | None,
    in_place: bool,
    writes: Writes | None = None,
    rule: LogitRule = SCALED_PRODUCT,
) -> tuple[Tensor, MultiState]:
    """Read one token: append its row, attend, reduce. This is the definition of the recurrence.

    Args:
        x: input of the layer, ``(B, E)``.
        q: ``(B, N, D)``; k, v: ``(B, K, D)``; rotated, unless H has places.
        clock, active, writes: as in :func:`reduce`; in_place: as in ``H.append``.
        rule: of the attention logits.

    Returns:
        Attention output ``(B, N, D)``, and the new H.
    """
    grown = with_columns_of_all_ranks(H).append(k, v, in_place=in_place)  # S + 1 rows
    keys, key_scales, rotated_keys = grown.keys, grown.key_scales, None
    if grown.places is not None:
        keys, key_scales = dequantise_rows(keys, key_scales, q.dtype), None
        q, keys = grown.places.rotate(q, keys, grown.positions, grown.n_learned)
        rotated_keys = keys
    attn_output, weights = attend(q, keys, grown.values, grown.visible, key_scales, grown.value_scales, rule)
    return attn_output, reduce(grown, Attended(weights, attn_output, q, x, rotated_keys), clock, active, writes)


def reduce(
    grown: MultiState,
    attended: Attended,
    clock: Tensor,
    active: Tensor | None,
    writes: Writes | None = None,
) -> MultiState:
    """Evict the row that the operator selects, if the rows exceed its size.

    Args:
        grown: S + 1 rows, the token's own last, as ``H.append`` gives them; their storage is written to, unless autograd
            needs it.
        attended: the attention of the current token to the S + 1 rows.
        clock: ``(B,)``, the clock after this token.
        active: ``(B,)`` bool; rows where it is false do not change, as if no row had been appended. None: all are active.
        writes: takes the writes over rows of the state before; the result is right after they are done. None: they are done
            here.

    Returns:
        H with the rows that are retained:

        - below the bound: all S + 1 rows
        - from then on: S rows, where the last row is written over the evicted row
        - where heads hold different numbers of rows: those of :func:`~.budget_evictions.evict_by_budget`
    """
    operator, S = grown.reduction, grown.positions.shape[2] - 1
    complete = grown.no_empty_rows and active is None
    to_gather = heads_to_gather(grown.heads, operator.operator if isinstance(operator, SharedBudget) else operator)
    observation = gather_observation(to_gather, operator, attended.observe(grown))
    observation = observation._replace(row_stats=next_stats(operator, observation, active, complete))
    row_stats = {name: heads_of_rank(to_gather, x) for name, x in observation.row_stats.items()}
    row_stats = replace_active(active, row_stats, grown.row_stats)
    if isinstance(operator, HeadBudget):
        return evict_by_budget(grown, observation, to_gather, row_stats, clock, active)
    if grown.capacity is None or grown.capacity > S:
        if active is not None:
            grown.positions[..., S].masked_fill_(~active[:, None], EMPTY)
        row_stats = {name: x.contiguous() for name, x in row_stats.items()}
        return replace(grown, clock=clock, row_stats=row_stats, no_empty_rows=complete)
    row = _row_to_overwrite(grown, observation, to_gather, active)  # (B, K)
    merged = _merged_values(grown, observation, to_gather, row, active) if operator.merges_values else {}
    in_place = not is_differentiated(attended.weights, grown.values)  # otherwise autograd has saved the rows
    rows = _overwrite_stored(grown.stored, merged, row, in_place, writes)
    row_stats = {name: _overwrite(x, row, False)[:, :, :S].clone() for name, x in row_stats.items()}
    return replace(grown, **rows, clock=clock, row_stats=row_stats, buffer=grown.buffer if in_place else None)


def _row_to_overwrite(grown: MultiState, observation: Observation, gathered: RankHeads | None, active: Tensor | None) -> Tensor:
    """Return the row ``(B, K)`` that the last row is written over: an empty row, or else the row to evict.

    Args:
        grown, active: as in :func:`reduce`.
        observation: of these rows, or of those of the heads of all ranks, with updated statistics.
        gathered: the heads of this rank, if the observation is that of all ranks; otherwise None.
    """
    operator, S = grown.reduction, grown.positions.shape[2] - 1
    complete = grown.no_empty_rows and active is None
    heads = grown.heads if gathered is None else None
    score = retention_scores(operator, observation, active, n_rows=S + 1, complete=complete, heads=heads)
    score = heads_of_rank(gathered, score)
    if not grown.no_empty_rows:
        score = score.masked_fill(grown.empty[:, : score.shape[1]], -torch.inf)
    row = select_evicted_row(score, grown.positions, grown.n_learned, operator.tie_tolerance).expand(grown.positions.shape[:2])
    return row if active is None else torch.where(active[:, None], row, S)  # the row of a token that is not read is dropped


def _merged_values(
    grown: MultiState, observation: Observation, gathered: RankHeads | None, row: Tensor, active: Tensor | None
) -> dict[str, Tensor]:
    """Return the values, and the scales of int8 values, after row ``row (B, K)`` is merged into others and evicted.

    The other arguments are those of :func:`_row_to_overwrite`.
    """
    evicts = grown.positions.gather(2, row[..., None])[..., 0] != EMPTY
    evicts = evicts if active is None else evicts & active[:, None]
    values = dequantise_rows(grown.values, grown.value_scales, observation.weights.dtype)
    complete = grown.no_empty_rows and active is None
    merged = merge_evicted_value(grown.reduction, observation, values, row, evicts, complete, gathered)
    return replace_values(grown.stored, values, merged) if grown.is_quantised else {"values": merged}


def _overwrite_stored(
    stored: dict[str, Tensor], merged: dict[str, Tensor], row: Tensor, in_place: bool, writes: Writes | None
) -> dict[str, Any]:
    """Write the last of S + 1 rows over row ``row (B, K)``, and return the first S rows by name.

    Args:
        stored: keys, values, positions and scales of S + 1 rows.
        merged: those of them that are replaced first.
        in_place: False: write into copies.
        writes: as in :func:`reduce`, for writes in place.
    """
    if not in_place:
        return {name: _overwrite(merged.get(name, x), row, in_place=False)[:, :, :-1] for name, x in stored.items()}
    new_writes: Writes = [partial(stored[name].copy_, x) for name, x in merged.items()]
    new_writes.extend(partial(_overwrite, x, row, in_place=True) for x in stored.values())
    run_or_defer(new_writes, writes)
    return {name: x[:, :, :-1] for name, x in stored.items()}


def run_or_defer(writes: Writes, deferred: Writes | None) -> None:
    """Append the writes to ``deferred``; without such a list, do them now."""
    if deferred is not None:
        deferred.extend(writes)
        return
    for write in writes:
        write()


def replace_active(active: Tensor | None, new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the new tensors ``(B, …)`` by name, and the old ones where ``active (B,)`` is False; None: all are active."""
    if active is None:
        return new
    return {name: torch.where(active.view(-1, *(1,) * (x.ndim - 1)), x, old[name]) for name, x in new.items()}


def next_stats(
    operator: Reduction, observation: Observation, active: Tensor | None = None, complete: bool = False
) -> dict[str, Tensor]:
    """Return the statistics after one token. ``observation.row_stats`` are those before it."""
    before = observation.row_stats
    if not operator.update_is_additive:
        return update_stats(operator, observation, active, complete)
    zeros = {name: torch.zeros_like(x) for name, x in before.items()}
    terms = update_stats(operator, observation._replace(row_stats=zeros), active, complete)
    return {name: x + terms[name] for name, x in before.items()}


def _overwrite(rows: Tensor, row: Tensor, in_place: bool) -> Tensor:
    """Write the last of ``rows (B, K, S + 1, …)`` over row ``row (B, K)``, which may be the last row itself."""
    (B, K), last = row.shape, rows[:, :, -1]
    index = (torch.arange(B, device=row.device)[:, None], torch.arange(K, device=row.device), row)
    # ``scatter_`` would copy all rows of a 16-bit dtype
    return rows.index_put_(index, last.clone()) if in_place else rows.index_put(index, last)
