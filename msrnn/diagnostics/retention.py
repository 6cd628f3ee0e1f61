"""Which positions H still holds, step by step: the paper's picture of what a bounded state remembers (v2 fig. 8)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..reductions.contract import Reduction
from ..state.state import State

AT_ONCE = 256
"""Tokens of a piece: their logits are there at once."""


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


@torch.no_grad()
def leaving(cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None) -> Tensor:
    """When each position of a text left H, read off ``cell.scan``'s trace.

    Args:
        cell: the cell.
        tokens: ``(B, T)`` int64.
        reduction: as ``cell.initial_state`` takes it.

    Returns:
        ``(B, L, K, T)`` int64: the step whose query was the last to see each position; T where H holds it at the end. After
        step t a head holds the positions p with p ≤ t < leaving[…, p].
    """
    B, T = tokens.shape
    state = cell.initial_state(B, reduction)
    heads = state[0].positions.shape[1]
    step = torch.full((B, len(state), heads, T + 1), T, device=tokens.device)  # the last column is for nobody
    for start in range(0, T, AT_ONCE):
        piece = tokens[:, start : start + AT_ONCE]
        _, trace = cell.scan(piece, state)
        now = torch.arange(start, start + piece.shape[1], device=tokens.device)
        for l, layer in enumerate(trace):
            left = layer.left.masked_fill(layer.left < 0, T)  # (B, K, t)
            step[:, l].scatter_(2, left, now.expand_as(left))
        state = trace.at(piece.shape[1])
    return step[..., :T]


def shares(leaving: Tensor) -> Tensor:
    """``(…, K, T) -> (…, T, T)`` float32: [t, p] is the share of the K heads that hold position p after step t."""
    p = torch.arange(leaving.shape[-1], device=leaving.device)
    t = p[:, None]
    return torch.stack([(p <= t) & (t < head[..., None, :]) for head in leaving.unbind(-2)]).float().mean(0)


def retention(cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None) -> Tensor:
    """What each step of a text kept, ``(B, L, T, T)`` float32; arguments as of :func:`leaving`.

    [b, l, t, p] is the share of layer l's heads that hold position p after step t.
    """
    return shares(leaving(cell, tokens, reduction))
