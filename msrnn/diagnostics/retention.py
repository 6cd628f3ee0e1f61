"""Positions that the KV cache retains, step by step (v2 of the TOVA paper, fig. 8)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d

from ..cell.cell import Cell
from ..decoding.prefill import prefill
from ..reductions.contract import Reduction
from ..state.state import State


def share_label(n_layers: int, n_heads: int, *, reduced: bool = False) -> str:
    """Return the label of the colour bar of a map: what its values are shares of.

    Args:
        n_layers: number of layers that a value is a mean over.
        n_heads: the same for key/value heads; 1 if all heads of a layer retain the same positions.
        reduced: True if a pixel is the mean of several steps and positions, as in a reduced :func:`pixel_map`. The label names
            this only if nothing else is averaged.
    """
    parts = [name for name, n in (("layers", n_layers), ("heads", n_heads)) if n > 1]
    if parts:
        return f"share of {' and '.join(parts)} that hold the position"
    return "share of (step, position) in H, per pixel" if reduced else "1: in H, 0: not in H"


def heads_agree(retained: Tensor) -> bool:
    """Return True if all heads of a layer retain the same positions, for maps of single layers as from :func:`retention`."""
    return bool(((retained == 0) | (retained == 1)).all())


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
    heads, n = state[0].positions.shape[1], T - one_shot
    steps = torch.full((B, len(state), heads, T + 1), T, device=tokens.device)  # the last column collects "no eviction"
    steps[..., :one_shot] = one_shot - 1
    for l, H in enumerate(state if one_shot else ()):
        steps[:, l].scatter_(2, H.positions.where(H.positions >= 0, T), T)
    _, trace = cell.scan(tokens[:, one_shot:], state, logits=False)
    for l, layer in enumerate(trace):
        last = layer.last_visible.expand_as(layer.rows)  # (B, K, S + T - one_shot)
        evicted = torch.where((last < n) & (layer.rows >= 0), layer.rows, T)
        steps[:, l].scatter_(2, evicted, last + one_shot)
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

    A mean would hide the first token, which many operators retain. So it is added in front, as a column of its own.

    Args:
        steps: ``(…, K, T)`` int64, as from :func:`eviction_steps`; maps of several layers are averaged.
        pixels: at least 1.

    Returns:
        ``(P, 1 + P)`` float32, P = min(T, pixels).
    """
    whole = retention_map(steps.flatten(0, -2))  # (T, T)
    P = min(len(whole), pixels)
    first = adaptive_avg_pool1d(whole[None, :, 0], P)[0]  # (P,)
    return torch.cat((first[:, None], adaptive_avg_pool2d(whole[None], P)[0]), dim=1)


def retention(cell: Cell, tokens: Tensor, reduction: Reduction | str | Sequence[Reduction | str] | None = None) -> Tensor:
    """Return the fraction of heads that hold position p after step t, at [b, l, t, p].

    Args:
        cell, tokens, reduction: as for :func:`eviction_steps`.

    Returns:
        ``(B, L, T, T)`` float32.
    """
    return retention_map(eviction_steps(cell, tokens, reduction))


def survival(steps: Tensor) -> Tensor:
    """Return the share of tokens that H still holds some steps after they were read (Kaplan-Meier estimate).

    A token near the end of the text is observed for a few steps only. At each age, the share falls by the fraction that is
    evicted of the tokens that were in H before and are observed at this age. So all tokens count, and the share never rises.

    Args:
        steps: ``(…, T)`` int64, as from :func:`eviction_steps`.

    Returns:
        ``(T // 2 + 1,)`` float64: the share after 0, 1, … T // 2 steps, over all leading dimensions.
    """
    T = steps.shape[-1]
    age = steps - torch.arange(T, device=steps.device)  # at which the token is no longer in H, or no longer observed
    evicted, observed = (torch.bincount(x.flatten(), minlength=T + 1)[: T + 1] for x in (age[steps < T], age))
    at_risk = observed.flip(0).cumsum(0).flip(0) - (observed - evicted)  # in H before this age, and observed at it
    return torch.cumprod(1 - evicted.double() / at_risk.clamp(min=1), 0)[: T // 2 + 1]
