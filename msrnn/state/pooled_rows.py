"""Pooled rows: those of all heads of a layer in one dimension, in any order, each with the number of its head.

Heads that share a budget hold a fixed number of rows in total, and any number of them in each head. A step writes the rows of
its token over the evicted ones, which may belong to other heads. So no shape changes once the budget is full. A step neither
copies the other rows nor synchronises with the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..reductions.contract import LEARNED, is_same_operator
from ..reductions.shared_budget import SharedBudget
from .jagged_rows import JaggedMultiState, n_jagged_rows
from .multistate import MultiState
from .stacking import stack_layers


@dataclass(frozen=True, eq=False)
class PooledMultiState(MultiState):
    """The rows of all heads, ``(B, 1, M, D)``, with a :class:`SharedBudget`.

    Attributes:
        row_heads: ``(B, 1, M)`` int64, the head of each row, from 0 to K − 1; arbitrary for empty rows.
        n_heads: K, the number of heads.
    """

    row_heads: Tensor = field(kw_only=True)
    n_heads: int = field(kw_only=True)

    @property
    def capacity(self) -> int:
        """Maximum number of rows of all heads after a step, learned rows included."""
        assert isinstance(self.reduction, SharedBudget)
        return self.n_heads * (self.reduction.size + self.n_learned)

    @property
    def rows_per_token(self) -> int:
        return self.n_heads

    @property
    def stored(self) -> dict[str, Any]:
        return {**super().stored, "row_heads": self.row_heads}

    @property
    def visible(self) -> Tensor:
        """``(B, K, M)`` bool, True for the rows of each head."""
        return self.is_of_head & ~self.empty

    @property
    def is_of_head(self) -> Tensor:
        """``(B, K, M)`` bool, True where a row belongs to a head, arbitrary for empty rows."""
        return self.row_heads == torch.arange(self.n_heads, device=self.row_heads.device)[:, None]

    def extended(self, *, in_place: bool) -> "PooledMultiState":
        """Return H with one more row for each head, in order of the heads; otherwise as the base class."""
        grown = super().extended(in_place=in_place)
        assert isinstance(grown, PooledMultiState)
        grown.row_heads.data[:, :, -self.n_heads :] = torch.arange(self.n_heads, device=self.row_heads.device)
        return grown

    def of_rows(self, x: Tensor) -> Tensor:
        """Return from ``x (B, K, M, …)`` the entry of the head of each row, ``(B, 1, M, …)``."""
        index = self.row_heads.view(*self.row_heads.shape, *(1,) * (x.ndim - 3))
        return x.gather(1, index.expand(-1, -1, -1, *x.shape[3:]))

    def to_jagged(self) -> JaggedMultiState:
        """Copy the rows, head after head, the learned rows of each first. This synchronises with the device."""
        head_rows = self.visible.sum(-1)  # (B, K)
        rank = 2 * self.row_heads + (self.positions != LEARNED)  # a row of a token may be stored before a learned one
        rank = rank.masked_fill(self.empty, 2 * self.n_heads)[:, 0]
        order = rank.argsort(dim=-1, stable=True)[:, : n_jagged_rows(head_rows)]  # (B, M')
        batch = torch.arange(len(order), device=order.device)[:, None]
        rows = {name: x[:, 0][batch, order][:, None] for name, x in self.rows.items()}
        jagged = self.with_rows(rows, self.clock)
        return JaggedMultiState(**{f.name: getattr(jagged, f.name) for f in fields(MultiState)}, head_rows=head_rows)


def stack_pooled(layers: Sequence[MultiState]) -> PooledMultiState | None:
    """Copy the layers as a state stores them into one, ``(L B, 1, M, D)`` with spare rows; None if they cannot be pooled.

    They cannot if they have no common :class:`SharedBudget`, if their heads are split over several processes, or if the
    operator reads keys, values or the attention output. It would read those of all heads for each head.
    """
    first, operator = layers[0], layers[0].reduction
    if not isinstance(operator, SharedBudget) or operator.needs_keys or operator.needs_values or operator.needs_output:
        return None
    shapes = (first.keys.shape, first.n_learned)
    alike = all(is_same_operator(H.reduction, operator) and (H.keys.shape, H.n_learned) == shapes for H in layers)
    if not alike or any(H.heads is not None or not isinstance(H, JaggedMultiState) for H in layers):
        return None
    stacked = stack_layers([_pooled(H) for H in layers if isinstance(H, JaggedMultiState)])
    assert isinstance(stacked, PooledMultiState)
    return stacked


def _pooled(jagged: JaggedMultiState) -> PooledMultiState:
    """Return the same rows, in the same storage, with the head of each."""
    K, M = jagged.head_rows.shape[1], jagged.positions.shape[2]
    column = torch.arange(M, device=jagged.positions.device)
    row_heads = (column >= jagged.head_rows.cumsum(-1)[..., None]).sum(1, keepdim=True).clamp(max=K - 1)  # (B, 1, M)
    values = {f.name: getattr(jagged, f.name) for f in fields(MultiState)} | {"no_empty_rows": False}
    return PooledMultiState(**values, row_heads=row_heads, n_heads=K)
