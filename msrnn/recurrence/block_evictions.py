r"""Evictions of a block of tokens, computed without one call of the operator per token.

The rows that token t attends to depend on earlier evictions, and the eviction at t depends on those rows: a recurrence. An
evicted row would have changed later scores little, so the recurrence is solved by fixed-point iteration:

1. Propose a row to evict at every token of the block.
2. Score all tokens at once, as if the proposal were true.
3. Find the first token at which another row than proposed has the lowest score. Up to this token the proposal is right, and the
   right row at this token is now known. Propose the rest again.

Each iteration settles at least one token and usually all of them. The result equals the step loop row for row. Iteration needs
statistics that are known at every token of a proposal, so ``update`` has to be additive. All other operators, and classes that
depend on the row layout, are called once per token. So are operators that read many keys or values on a CPU, and operators for
the remaining tokens of a block if iterations settle few of them.
"""

import torch
from torch import Tensor

from ..layers.differentiation import to_list
from ..reductions.contract import EMPTY, Reduction
from ..reductions.shared_budget import SharedBudget
from .block_scores import BlockScores, EvictionBlock, score_tokens
from .shared_evictions import solve_shared, solve_shared_by_token

MIN_ITERATIONS = 4
"""Number of iterations of a block before the tokens that they have settled are counted."""
MIN_SETTLED_TOKENS = 4
"""Mean number of tokens per iteration below which one call of the operator per token takes less time than more iterations."""
MAX_COPIED_PER_TOKEN = 2**16
"""If an operator reads more elements of keys and values of a block than this, one call per token solves it on a CPU.
Iterations copy these elements for each token. Chosen by the times of SmolLM2 (docs/log.md)."""


def is_solved_per_token(operator: Reduction) -> bool:
    """Return True if the evictions of a block are always found with one call of the operator per token."""
    return operator.depends_on_row_layout or (bool(operator.stat_names) and not operator.update_is_additive)


@torch.no_grad()
def solve_evictions(block: EvictionBlock, want_scores: bool = False) -> tuple[EvictionBlock, list[BlockScores]]:
    """Return the block with its evictions, and the scores of consecutive tokens under them.

    Args:
        block: tokens without evictions.
        want_scores: True: score every token. False: score tokens at which a row is evicted.
    """
    operator, evicts, row_stats, T = block.reduction, block.layout.evicts, block.row_stats, block.T
    by_token = is_solved_per_token(operator) or _copies_are_slow(block)
    if isinstance(operator, SharedBudget):
        return (solve_shared_by_token if by_token else solve_shared)(block, want_scores)
    if by_token:
        return _solve_token_by_token(block, want_scores, row_stats)
    scores = score_tokens(block, 0, T, row_stats, call_score=want_scores or not block.layout.no_evictions)
    if block.layout.no_evictions:
        return block, [scores]
    heads = scores.score.shape[2]
    evicts = evicts[..., :heads].expand(-1, -1, heads)  # (B, T, 1 or K)
    # positions decide if weights do not, and then many scores are equal
    candidates = scores.lowest_rows(min(T, block.positions.shape[2]), ties=not operator.needs_weights)
    proposal, settled = torch.full_like(evicts, -1, dtype=torch.int64), torch.zeros_like(evicts[:, 0], dtype=torch.int64)
    start, stop, n_iterations, parts = 0, T, 0, list[BlockScores]()
    while start < T:
        if n_iterations >= MIN_ITERATIONS and start < MIN_SETTLED_TOKENS * n_iterations:
            proposal[:, start:] = -1
            solved, rest = _solve_token_by_token(block.with_evictions(proposal), want_scores, row_stats, start)
            return solved, [*parts, *rest]
        proposal = _propose_evictions(candidates, evicts, proposal, settled)
        proposed = block.with_evictions(proposal)
        scores = score_tokens(proposed, start, stop, row_stats)
        rows = scores.lowest_row(evicts[:, start:stop])
        if stop == T and rows.equal(proposal[:, start:]):
            return proposed, [*parts, scores]
        wrong = rows != proposal[:, start:stop]
        first_wrong = torch.where(wrong.any(1), wrong.byte().argmax(1), stop - 1 - start)  # (B, 1 or K)
        proposal.scatter_(1, start + first_wrong[:, None], rows.gather(1, first_wrong[:, None]))
        settled, n_settled = start + first_wrong + 1, int(first_wrong.amin()) + 1
        parts.append(scores.first_tokens(n_settled))
        row_stats = parts[-1].last_stats()
        start, n_iterations = start + n_settled, n_iterations + 1
        stop = min(T, start + 4 * n_settled)  # later tokens of the proposal are probably wrong as well
    return block.with_evictions(proposal), parts


def _copies_are_slow(block: EvictionBlock) -> bool:
    """Return True if one call of the operator per token is faster, because iterations would copy many keys and values."""
    is_on_cpu, has_evictions = block.positions.device.type == "cpu", not block.layout.no_evictions
    return is_on_cpu and has_evictions and block.fields.copied_per_token > MAX_COPIED_PER_TOKEN


def _solve_token_by_token(
    block: EvictionBlock, want_scores: bool, row_stats: dict[str, Tensor], start: int = 0
) -> tuple[EvictionBlock, list[BlockScores]]:
    """:func:`solve_evictions` with one call of the operator per token from ``start`` on, as in the step loop.

    ``row_stats`` are the statistics before token ``start``. The block has the evictions of the tokens before it.
    """
    T, evicts, parts = block.T, block.layout.evicts, list[BlockScores]()
    first_eviction = T if block.layout.no_evictions else int(evicts.any(-1).any(0).byte().argmax())
    if start < first_eviction and not row_stats and not want_scores:  # no call is needed before the first eviction
        parts.append(score_tokens(block, start, first_eviction, row_stats, call_score=False))
        start = first_eviction
    for t in range(start, T):
        scores = score_tokens(block, t, t + 1, row_stats, want_scores or t >= first_eviction, every_row=want_scores)
        row_stats = scores.last_stats()
        block = block.with_evictions(scores.lowest_row(evicts[:, t : t + 1]), t)
        parts.append(scores)
    return block, parts


def evicted_positions(positions: Tensor, last_visible: Tensor, T: int) -> Tensor:
    """Return ``(B, K, T)`` int64: the position evicted at each of T tokens, −1 for none.

    ``positions`` and ``last_visible`` are those of an :class:`EvictionBlock`.
    """
    evicted = positions.new_full((*positions.shape[:2], T + 1), EMPTY)  # the last column takes retained and empty rows
    return evicted.scatter_(2, last_visible.masked_fill(last_visible < 0, T).expand_as(positions), positions)[..., :T]


def _propose_evictions(candidates: Tensor, evicts: Tensor, known: Tensor, settled: Tensor) -> Tensor:
    """Return a proposal ``(B, T, 1 or K)``, −1 where no row is evicted: settled tokens, then candidates in order.

    Any proposal that takes no row twice leads to the result. A loop over lists is the fastest way to exclude taken rows.

    Args:
        candidates: ``(B, T, 1 or K, n)``, rows of the lowest scores without evictions.
        evicts: ``(B, T, 1 or K)`` bool.
        known: the rows of the first ``settled (B, 1 or K)`` tokens.
    """
    B, T, heads = known.shape
    proposal, stops, ranks, evicting = map(to_list, (known, settled, candidates, evicts))
    for b in range(B):
        for h in range(heads):
            stop = stops[b][h]
            taken = {proposal[b][t][h] for t in range(stop)}
            for t in range(stop, T):
                row = -1
                if evicting[b][t][h]:
                    for row in ranks[b][t][h]:
                        if row not in taken:
                            break
                    taken.add(row)
                proposal[b][t][h] = row
    return torch.tensor(proposal, device=known.device)
