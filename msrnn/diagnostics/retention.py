"""Positions that the KV cache retains, step by step (v2 of the TOVA paper, fig. 8)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..reductions.contract import Reduction
from ..state.state import State


def retained_fraction(state: State, length: int) -> Tensor:
    """Return the fraction of key/value heads that hold each position.

    Args:
        state: any state.
        length: positions 0 … length − 1 are counted, later ones are ignored.

    Returns:
        ``(B, L, length)`` float32, from 0 to 1.
    """
    layers = []
    for H in state:
        B, K, _ = H.positions.shape
        index = torch.where((H.positions >= 0) & (H.positions < length), H.positions, length)  # the rest goes to a last bin
        counts = torch.zeros(B, K, length + 1, device=index.device).scatter_(2, index, 1.0)
        layers.append(counts[..., :length].mean(1))  # (B, length)
    return torch.stack(layers, dim=1)


@torch.no_grad()
def eviction_steps(cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None) -> Tensor:
    """Return the step at which each position of a text is evicted.

    Args:
        cell: the model.
        tokens: ``(B, T)`` int64.
        reduction: as for ``cell.initial_state``.

    Returns:
        ``(B, L, K, T)`` int64: the last step at which the query attends to the position, or T if H holds it at the end. After
        step t a head holds the positions p with p ≤ t < eviction_steps[…, p].
    """
    B, T = tokens.shape
    state = cell.initial_state(B, reduction)
    _, trace = cell.scan(tokens, state, logits=False)
    heads, now = state[0].positions.shape[1], torch.arange(T, device=tokens.device)
    steps = torch.full((B, len(state), heads, T + 1), T, device=tokens.device)  # the last column collects "no eviction"
    for l, layer in enumerate(trace):
        evicted = layer.left.masked_fill(layer.left < 0, T)  # (B, K, T)
        steps[:, l].scatter_(2, evicted, now.expand_as(evicted))
    return steps[..., :T]


def retention_map(steps: Tensor) -> Tensor:
    """Return the fraction of heads that hold position p after step t, at [t, p].

    Args:
        steps: ``(…, K, T)`` int64, as from :func:`eviction_steps`.

    Returns:
        ``(…, T, T)`` float32.
    """
    p = torch.arange(steps.shape[-1], device=steps.device)
    t = p[:, None]
    return torch.stack([(p <= t) & (t < head[..., None, :]) for head in steps.unbind(-2)]).float().mean(0)


def retention(cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None) -> Tensor:
    """Return the fraction of heads that hold position p after step t, at [b, l, t, p].

    Args:
        cell, tokens, reduction: as for :func:`eviction_steps`.

    Returns:
        ``(B, L, T, T)`` float32.
    """
    return retention_map(eviction_steps(cell, tokens, reduction))
