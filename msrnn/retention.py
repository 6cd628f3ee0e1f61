"""Which positions H still holds, step by step: the paper's picture of what a bounded state remembers (v2 fig. 8)."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .cell import Cell
from .reduction import Reduction
from .state import State


def held(state: State, length: int) -> Tensor:
    """``(B, L, length)`` float32: the share of a layer's key/value heads that hold each position, 0 … 1.

    Args:
        state: after any step.
        length: how many positions to tell of, 0 … length − 1; later ones are left out.
    """
    layers = []
    for H in state:
        B, K, _ = H.positions.shape
        index = torch.where((H.positions >= 0) & (H.positions < length), H.positions, length)  # the rest goes to a last bin
        marks = torch.zeros(B, K, length + 1, device=index.device).scatter_(2, index, 1.0)
        layers.append(marks[..., :length].mean(1))  # (B, length)
    return torch.stack(layers, dim=1)


def retention(
    cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None, progress: bool = False
) -> Tensor:
    """What each step of a text kept.

    Args:
        cell: the cell.
        tokens: ``(B, T)`` int64.
        reduction: as ``cell.initial_state`` takes it.
        progress: whether to show a bar.

    Returns:
        ``(B, L, T, T)`` float32: [b, l, t, p] is the share of layer l's heads that hold position p after step t.
    """
    B, T = tokens.shape
    state = cell.initial_state(B, reduction)
    kept = torch.zeros(B, len(state), T, T, device=tokens.device)
    columns: Iterable[Tensor] = tokens.unbind(1)
    with torch.no_grad():
        for t, token in enumerate(_bar(columns, T) if progress else columns):
            _, state = cell.step_(token, state)
            kept[:, :, t] = held(state, T)
    return kept


def _bar(columns: Iterable[Tensor], total: int) -> Iterator[Tensor]:
    from tqdm import tqdm

    yield from tqdm(columns, total=total, desc="reading", unit="token", leave=False, disable=None)
