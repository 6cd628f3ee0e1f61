"""Selection of the row to evict from the scores of an operator."""

import torch
from torch import Tensor


def select_evicted_row(score: Tensor, positions: Tensor, n_learned: int = 0, tie_tolerance: float = 0.0) -> Tensor:
    """Return the row with the lowest score; of equal scores, the row at the oldest position. Learned rows are not selected.

    Args:
        score: ``(B, 1 or K, R)`` without NaN, −inf for absent rows, which are selected first.
        positions: ``(B, K, R)``, −1 for absent rows.
        n_learned: number of learned rows, the first ones.
        tie_tolerance: as of :class:`Reduction`.

    Returns:
        Row index ``(B, 1 or K)``.
    """
    learned = torch.arange(score.shape[-1], device=score.device) < n_learned if n_learned else None
    higher = above_lowest(score, learned, tie_tolerance)
    return positions[:, : score.shape[1]].masked_fill(higher, torch.iinfo(torch.int64).max).argmin(-1)


def above_lowest(score: Tensor, excluded: Tensor | None, tie_tolerance: float) -> Tensor:
    """Return a mask that is False for the rows to evict one of: those of the lowest score, up to the relative tolerance."""
    lowest = (score if excluded is None else score.masked_fill(excluded, torch.inf)).amin(-1, keepdim=True)
    if tie_tolerance:
        limit = torch.add(lowest, lowest.abs(), alpha=tie_tolerance).clamp(max=torch.finfo(score.dtype).max)
        lowest = torch.fmax(lowest, limit)  # of −inf the limit is NaN
    return score > lowest if excluded is None else (score > lowest) | excluded
