"""Evictions of a block of tokens in a layer in which heads share a budget, so that a token evicts several rows."""

from dataclasses import replace

import torch
from torch import Tensor

from ..layers.differentiation import to_list
from ..reductions.shared_budget import SharedBudget
from .block_scores import BlockScores, EvictionBlock, score_tokens
from .budget_evictions import rows_to_evict


def solve_shared_by_token(block: EvictionBlock, want_scores: bool) -> tuple[EvictionBlock, list[BlockScores]]:
    """Return the block with its evictions and the scores of each token, with one call of the operator per token."""
    row_stats, parts, block = block.row_stats, list[BlockScores](), _with_all_heads(block)
    evicts = to_list(block.layout.evicts.flatten(2).any(-1).any(0))  # (T,)
    for t in range(block.T):
        scores = score_tokens(block, t, t + 1, row_stats, call_score=want_scores or evicts[t])
        row_stats = scores.last_stats()
        if evicts[t]:
            block = replace(block, last_visible=torch.where(_evicted(block, scores, t)[:, 0], t, block.last_visible))
        parts.append(scores)
    return block, parts


def solve_shared(block: EvictionBlock, want_scores: bool) -> tuple[EvictionBlock, list[BlockScores]]:
    """Return the block with its evictions, and the scores of consecutive tokens under them, by fixed-point iteration.

    A proposal is the set of rows that each token evicts. Up to the first token at which the scores under the proposal evict
    other rows it is right, and the rows at this token are then known.
    """
    row_stats, parts, block, T = block.row_stats, list[BlockScores](), _with_all_heads(block), block.T
    scores = score_tokens(block, 0, T, row_stats, call_score=want_scores or not block.layout.no_evictions)
    if block.layout.no_evictions:
        return block, [scores]
    proposer, start, stop = _Proposer(block, scores), 0, T
    step = torch.arange(T, device=block.positions.device)[:, None, None]  # (T, 1, 1)
    while start < T:
        proposed = replace(block, last_visible=proposer.propose(block, start))
        scores = score_tokens(proposed, start, stop, row_stats)
        evicted = _evicted(proposed, scores, start)  # (B, t, K, R)
        expected = (proposed.last_visible[:, None] == step[start:stop]) & (block.positions >= 0)[:, None]
        wrong = (evicted != expected).flatten(2).any(-1).any(0)  # (t,)
        if stop == T and not bool(wrong.any()):
            return proposed, [*parts, scores]
        n_settled = int(wrong.byte().argmax()) + 1 if bool(wrong.any()) else stop - start
        settled = evicted[:, :n_settled]
        when = torch.where(settled, step[start : start + n_settled], T).amin(1)  # (B, K, R)
        block = replace(block, last_visible=torch.where(when < T, when, block.last_visible))
        parts.append(scores.first_tokens(n_settled))
        row_stats = parts[-1].last_stats()
        start += n_settled
        stop = min(T, start + 4 * n_settled)  # later tokens of the proposal are probably wrong as well
    return block, parts


def _with_all_heads(block: EvictionBlock) -> EvictionBlock:
    return replace(block, last_visible=block.last_visible.expand_as(block.positions))


def _evicted(block: EvictionBlock, scores: BlockScores, start: int) -> Tensor:
    """Return the rows ``(B, t, K, R)`` that the scores of t tokens from ``start`` on evict."""
    assert isinstance(block.reduction, SharedBudget)
    B, t = scores.absent.shape[:2]
    positions = block.positions[:, None].masked_fill(scores.absent, -1).flatten(0, 1)
    return rows_to_evict(block.reduction, scores.score.flatten(0, 1), positions).unflatten(0, (B, t))


class _Proposer:
    """Proposes rows to evict from the scores without evictions. Any proposal leads to the result."""

    def __init__(self, block: EvictionBlock, scores: BlockScores):
        _B, T, K, R = scores.score.shape
        lowest = torch.where(scores.excluded, torch.inf, scores.score.clamp(max=torch.finfo(scores.score.dtype).max))
        ties = not block.reduction.needs_weights  # positions decide if weights do not, and then many scores are equal
        flat, n = lowest.flatten(2), min(K * R, K * (T + 1))  # as many rows as T + 1 tokens can evict
        if ties:
            oldest = block.positions.flatten(1)[:, None].expand_as(flat).argsort(dim=-1, stable=True)
            order = flat.gather(-1, oldest).argsort(dim=-1, stable=True)[..., :n]
            self._ranks = to_list(oldest.gather(-1, order))
        else:
            self._ranks = to_list(flat.topk(n, largest=False).indices)

    def propose(self, block: EvictionBlock, start: int) -> Tensor:
        """Return ``last_visible (B, K, R)`` with evictions at token ``start`` and later ones; those before are settled."""
        operator, T, R = block.reduction, block.T, block.positions.shape[2]  # the last T rows are those of the tokens
        assert isinstance(operator, SharedBudget)
        is_held = (block.last_visible == T) & (block.positions >= 0)  # not evicted before token start
        n_before = is_held[..., : R - T + start].sum(-1)  # (B, K)
        n_rows, read, held = map(to_list, (n_before, block.layout.active, is_held.flatten(1)))
        last_visible = block.last_visible.flatten(1).clone()
        for b, ranks in enumerate(self._ranks):
            ranks_read = {t: ranks[t] for t in range(start, T) if read[b][t]}
            evicted_at = _evict_in_order(operator, ranks_read, n_rows[b], held[b])
            if evicted_at:
                rows, steps = (torch.tensor([*x], device=last_visible.device) for x in (evicted_at, evicted_at.values()))
                last_visible[b, rows] = steps
        return last_visible.view_as(block.last_visible)


def _evict_in_order(operator: SharedBudget, ranks: dict[int, list[int]], n_rows: list[int], held: list[bool]) -> dict[int, int]:
    """Return the rows of one sequence that are evicted if each token evicts rows in a given order, each row with its token.

    Args:
        operator: the budget.
        ranks: by token that is read, the rows to evict first, numbered ``head * R + row``.
        n_rows: number of rows of each head before the first of these tokens.
        held: ``K R`` values, True for rows that no earlier token has evicted.
    """
    K, R = len(n_rows), len(held) // len(n_rows)
    budget, floor, evicted_at = K * operator.size, operator.floor_rows, dict[int, int]()
    for t, rows in ranks.items():
        n_rows = [n + 1 for n in n_rows]
        excess = sum(n_rows) - budget
        for row in rows:
            if excess <= 0:
                break
            head = row // R
            if held[row] and row not in evicted_at and n_rows[head] > floor:
                evicted_at[row] = t
                n_rows[head] -= 1
                excess -= 1
    return evicted_at
