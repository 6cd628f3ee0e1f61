"""Positions that the KV cache retains, step by step (v2 of the TOVA paper, fig. 8)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from ..cell.cell import Cell
from ..decoding.prefill import prefill
from ..reductions.contract import Reduction
from ..state.state import State

FIRST_TOKEN_STRIP = "position (strip on the left: the first token)"
"""Label of the columns of a map that :func:`pixel_map` has reduced."""


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
def eviction_steps(
    cell: Cell,
    tokens: Tensor,
    reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    *,
    one_shot: int = 0,
) -> Tensor:
    """Return the step at which each position of a text is evicted.

    Args:
        cell: the model.
        tokens: ``(B, T)`` int64.
        reduction: as for ``cell.initial_state``.
        one_shot: number of tokens at the start that ``msrnn.prefill`` reads, with one eviction after them. Layers that keep the
            window of the published model evict earlier, but their evictions are given as those after the last of these tokens.

    Returns:
        ``(B, L, K, T)`` int64: the last step at which the query attends to the position, or T if H holds it at the end. After
        step t a head holds the positions p with p ≤ t < eviction_steps[…, p].
    """
    B, T = tokens.shape
    if one_shot:
        _, state = prefill(cell, tokens[:, :one_shot], cell.default_reduction if reduction is None else reduction)
    else:
        state = cell.initial_state(B, reduction)
    heads, now = state[0].positions.shape[1], torch.arange(one_shot, T, device=tokens.device)
    steps = torch.full((B, len(state), heads, T + 1), T, device=tokens.device)  # the last column collects "no eviction"
    steps[..., :one_shot] = one_shot - 1
    for l, H in enumerate(state if one_shot else ()):
        steps[:, l].scatter_(2, H.positions.where(H.positions >= 0, T), T)
    _, trace = cell.scan(tokens[:, one_shot:], state, logits=False)
    for l, layer in enumerate(trace):
        evicted = layer.left.masked_fill(layer.left < 0, T)  # (B, K, T - one_shot)
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


def pixel_map(steps: Tensor, pixels: int) -> Tensor:
    """Return :func:`retention_map` with at most ``pixels`` lines and columns, each the mean of several steps and positions.

    A mean would hide the first token, which many operators retain. So the leftmost 1/64 of a reduced map is the first token
    alone.

    Args:
        steps: ``(…, K, T)`` int64, as from :func:`eviction_steps`; maps of several layers are averaged.
        pixels: at least 64.
    """
    whole = retention_map(steps.flatten(0, -2))  # (T, T)
    if len(whole) <= pixels:
        return whole
    first = adaptive_avg_pool1d(whole[None, :, 0], pixels)[0]
    reduced = adaptive_avg_pool2d(whole[None], pixels)[0]
    return torch.cat((first[:, None].expand(-1, pixels // 64), reduced[:, pixels // 64 :]), dim=1)


def retention(cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None) -> Tensor:
    """Return the fraction of heads that hold position p after step t, at [b, l, t, p].

    Args:
        cell, tokens, reduction: as for :func:`eviction_steps`.

    Returns:
        ``(B, L, T, T)`` float32.
    """
    return retention_map(eviction_steps(cell, tokens, reduction))


def held_share(steps: Tensor, age: int) -> Tensor:
    """Return the share of positions that a head still holds ``age`` steps after they were read, ``(…, T) -> (…)`` float64.

    Positions that were read less than ``age`` steps before the end of the text are not counted; NaN if there are no others.

    Args:
        steps: as from :func:`eviction_steps`.
        age: at least 0.
    """
    counted = max(0, steps.shape[-1] - age)
    held = steps[..., :counted] > torch.arange(age, age + counted, device=steps.device)
    return held.double().mean(-1)
