"""The positions that were evicted between two states of the same sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import Error
from .multistate import MultiState


def evicted_positions(before: Sequence[MultiState], after: Sequence[MultiState]) -> list[Tensor]:
    """Return for each layer the positions that ``after`` lacks, of rows in ``before`` and of tokens read since then.

    Returns:
        Per layer ``(B, K, M)`` int64: ascending positions, then −1 where a head has fewer than M.

    Raises:
        Error: ``before`` is no earlier state of the same sequences.
    """
    if len(before) != len(after) or before[0].positions.shape[:2] != after[0].positions.shape[:2]:
        shapes = " and ".join(f"{len(x)} layers, {x[0].positions.shape[0]} sequences" for x in (before, after))
        raise Error(f"evicted_since: the states have {shapes}; expected an earlier state of the same sequences")
    start, end = before[0].clock[:, None, None], after[0].clock[:, None, None]  # (B, 1, 1)
    if bool((start > end).any()):
        raise Error(f"evicted_since: the clocks are {start.flatten().tolist()} before and {end.flatten().tolist()} now")
    return [_evicted(G, H, start, end) for G, H in zip(before, after, strict=True)]


def _evicted(before: MultiState, after: MultiState, start: Tensor, end: Tensor) -> Tensor:
    T = int(end.amax()) if len(end) else 0
    position = torch.arange(T, device=end.device)
    candidates = _held(before, T) | ((position >= start) & (position < end))  # (B, K, T)
    held = _held(after, T)
    if bool((held & ~candidates).any()):
        raise Error("evicted_since: the later state has rows that the earlier one lacks; expected an earlier state of it")
    evicted = candidates & ~held
    listed = torch.where(evicted, position, T).sort(-1).values[..., : int(evicted.sum(-1).amax()) if evicted.numel() else 0]
    return listed.masked_fill(listed == T, -1)


def _held(H: MultiState, T: int) -> Tensor:
    """Return ``(B, K, T)`` bool, True for positions in H."""
    B, K, _ = H.positions.shape
    index = torch.where(H.positions >= 0, H.positions, T)
    return torch.zeros(B, K, T + 1, dtype=torch.bool, device=index.device).scatter_(2, index, True)[..., :T]
