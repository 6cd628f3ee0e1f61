"""Jagged rows: those of a layer in which heads hold different numbers of rows, without empty rows for the shorter heads.

As in the jagged layout of ``torch.nested``, the rows of one head follow those of the head before it. A state stores such a
layer as :class:`JaggedMultiState`. A step reads it as a padded :class:`MultiState` ``(B, K, S, D)``, with S rows for the
fullest head, and empty rows in the others. Only one layer at a time has to be padded.
"""

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from ..errors import Error
from ..layers.differentiation import is_batched_by_vmap
from ..reductions.contract import EMPTY
from ..reductions.head_budgets import HeadBudget
from .multistate import MultiState


@dataclass(frozen=True, eq=False)
class JaggedMultiState(MultiState):
    """The rows of all heads in one dimension, ``(B, 1, M, D)``: head after head, then empty rows if other sequences hold more.

    Attributes:
        head_rows: ``(B, K)`` int64, number of rows of each head.
    """

    head_rows: Tensor = field(kw_only=True)

    @property
    def rows(self) -> dict[str, Tensor]:
        return {**super().rows, "head_rows": self.head_rows}

    def with_rows(self, rows: dict[str, Tensor], clock: Tensor, *, no_empty_rows: bool = False) -> "JaggedMultiState":
        H = super().with_rows(rows, clock, no_empty_rows=no_empty_rows)
        assert isinstance(H, JaggedMultiState)
        return replace(H, head_rows=rows["head_rows"])


def jagged_if_uneven(H: MultiState) -> MultiState:
    """Return H as a state stores it: jagged, if its heads may hold different numbers of rows."""
    return to_jagged(H) if isinstance(H.reduction, HeadBudget) and not isinstance(H, JaggedMultiState) else H


def padded(H: MultiState) -> MultiState:
    """Return H as a layer reads it, ``(B, K, S, D)``."""
    return to_padded(H) if isinstance(H, JaggedMultiState) else H


def to_jagged(H: MultiState) -> JaggedMultiState:
    """Copy the rows of H, head after head, without the empty ones. This synchronises with the device."""
    refuse_vmap(H)
    held = ~H.empty
    rows = jagged_tensors(H.rows, held)
    jagged = H.with_rows(rows, H.clock)
    return JaggedMultiState(**{f.name: getattr(jagged, f.name) for f in fields(MultiState)}, head_rows=held.sum(-1))


def jagged_tensors(padded: dict[str, Tensor], held: Tensor) -> dict[str, Tensor]:
    """Return the rows ``(B, 1, M, …)`` where ``held (B, K, S)`` is True, in order, from padded ``(B, K, S, …)`` by name."""
    (B, K, S), n_rows = held.shape, held.sum((1, 2))
    M = n_jagged_rows(held.sum(-1))
    order = (~held).flatten(1).byte().argsort(dim=-1, stable=True)[:, :M]  # (B, M)
    index = (order + K * S * torch.arange(B, device=order.device)[:, None]).flatten()
    empty = (torch.arange(M, device=order.device) >= n_rows[:, None])[:, None]  # (B, 1, M)
    return {name: _gather(x, index, empty) for name, x in padded.items()}


def n_jagged_rows(head_rows: Tensor) -> int:
    """Return M, the number of jagged rows, from the number of rows of each head ``(B, K)``. Synchronises with the device."""
    return int(head_rows.sum(-1).amax()) if len(head_rows) else 0


def to_padded(jagged: JaggedMultiState) -> MultiState:
    """Copy the rows into S columns for each head, ``(B, K, S, D)``, empty rows last. This synchronises with the device."""
    refuse_vmap(jagged)
    B, M = len(jagged.head_rows), jagged.positions.shape[2]
    S = int(jagged.head_rows.amax()) if jagged.head_rows.numel() else 0
    column = torch.arange(S, device=jagged.clock.device)
    empty = column >= jagged.head_rows[..., None]  # (B, K, S)
    first = jagged.head_rows.cumsum(-1) - jagged.head_rows + M * torch.arange(B, device=column.device)[:, None]
    index = torch.where(empty, 0, first[..., None] + column).flatten()
    H = MultiState(**{f.name: getattr(jagged, f.name) for f in fields(MultiState)})
    return H.with_rows({name: _gather(x, index, empty) for name, x in H.rows.items()}, jagged.clock)


def _gather(x: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    """Return the rows ``index`` of ``x``, counted through all heads, in the shape of ``empty (B, 1 or K, R)`` bool.

    Empty rows become 0, because attention multiplies them by a weight of 0, and another sequence may hold NaN. Positions, the
    only rows of int64, become −1.
    """
    rows = x.flatten(0, 2).index_select(0, index).view(*empty.shape, *x.shape[3:])
    return rows.masked_fill_(empty.view(*empty.shape, *(1,) * (x.ndim - 3)), EMPTY if x.dtype == torch.int64 else 0)


def refuse_vmap(H: MultiState) -> None:
    """Raise :class:`Error` in a transform in which the numbers of rows cannot be read."""
    if is_batched_by_vmap(H.positions, H.keys):
        raise Error(
            f"torch.func.vmap cannot read {H.reduction}, in which heads hold different numbers of rows; expected a loop over "
            "the inputs, or one size for all heads"
        )
