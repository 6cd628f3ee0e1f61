"""Several :class:`MultiState` as one: layers stacked for a fast step, batches concatenated after a ragged batch."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..reductions.contract import EMPTY, is_same_operator
from ..reductions.head_budgets import HeadBudget
from .multistate import MultiState
from .row_buffer import RowBuffer, copy_to_buffer, spare_rows


def can_stack(layers: Sequence[MultiState]) -> bool:
    """Return True if the layers have one bounded operator and equally many rows.

    Classes that depend on the row layout are excluded, because they are called layer by layer, and so are heads with different
    numbers of rows.
    """
    first = layers[0]
    if first.capacity is None or first.reduction.depends_on_row_layout or isinstance(first.reduction, HeadBudget):
        return False
    shapes = (first.keys.shape, first.n_learned)
    return all(is_same_operator(H.reduction, first.reduction) and (H.keys.shape, H.n_learned) == shapes for H in layers)


def stack(layers: Sequence[MultiState]) -> MultiState | None:
    """Copy the layers into one ``(L B, K, S, D)`` with spare rows; None if they cannot be stacked.

    The clock ``(B,)`` of the result is the one that the layers share.
    """
    return stack_layers(layers) if can_stack(layers) else None


def stack_layers(layers: Sequence[MultiState]) -> MultiState:
    """Return :func:`stack` of layers that have one operator and equally many rows."""
    first = layers[0]
    buffer = copy_to_buffer([H.stored for H in layers], first.capacity, first.rows_per_token)
    row_stats = {name: torch.cat([H.row_stats[name] for H in layers]) for name in first.row_stats}
    no_empty_rows = all(H.no_empty_rows for H in layers)
    rows = buffer.prefix(first.keys.shape[2])
    return replace(first, **rows, row_stats=row_stats, buffer=buffer, no_empty_rows=no_empty_rows)


def unstack(stacked: MultiState, n_layers: int) -> tuple[MultiState, ...]:
    """Return the layers of a stacked H as views, without spare rows."""
    layers = zip(*(x.unflatten(0, (n_layers, -1)).unbind() for x in stacked.rows.values()), strict=True)
    return tuple(
        stacked.with_rows(dict(zip(stacked.rows, rows, strict=True)), stacked.clock, no_empty_rows=stacked.no_empty_rows)
        for rows in layers
    )


def stack_and_keep(layers: Sequence[MultiState], mask: Tensor) -> MultiState:
    """Return the :func:`stack` of ``H.keep_rows(mask, uniform=True)`` of all layers, with one copy instead of two.

    Args:
        layers: layers that :func:`can_stack`.
        mask: ``(L, B, 1 or K, S)`` bool, equally many True in every head.
    """
    first, L = layers[0], len(layers)
    B, K, S, _ = first.keys.shape
    n = int(mask[0, 0, 0].sum())
    row = mask.expand(L, B, K, S).nonzero()[:, -1].view(L, B * K, n)
    # spare rows repeat row 0; their contents do not matter
    row = pad(row, (0, spare_rows(n, first.capacity))) + S * torch.arange(B * K, device=row.device)[:, None]

    def gather(name: str) -> Tensor:
        tensors = [H.rows[name].flatten(0, 2) for H in layers]
        out = tensors[0].new_empty(L, row[0].numel(), *tensors[0].shape[1:])
        for x, index, target in zip(tensors, row.flatten(1), out, strict=True):
            torch.index_select(x, 0, index, out=target)
        return out.view(L * B, K, -1, *tensors[0].shape[1:])

    buffer = RowBuffer({name: gather(name) for name in first.stored}, n)
    row_stats = {name: gather(name)[:, :, :n].contiguous() for name in first.row_stats}
    return replace(first, **buffer.prefix(n), row_stats=row_stats, buffer=buffer, no_empty_rows=True)


def concat_batches(parts: Sequence[MultiState]) -> MultiState:
    """Copy the batches of several H of one layer into one, one after the other; shorter ones are padded with empty rows."""
    S = max(H.keys.shape[2] for H in parts)

    def padded(H: MultiState, name: str) -> Tensor:
        x = H.rows[name]
        fill = x.new_full((*x.shape[:2], S - x.shape[2], *x.shape[3:]), EMPTY if name == "positions" else 0)
        return torch.cat((x, fill), dim=2)

    rows = {name: torch.cat([padded(H, name) for H in parts]) for name in parts[0].rows}
    no_empty_rows = all(H.no_empty_rows and H.keys.shape[2] == S for H in parts)
    return parts[0].with_rows(rows, torch.cat([H.clock for H in parts]), no_empty_rows=no_empty_rows)
