"""The layout of a block of tokens before any score is computed: visible rows, and the tokens at which a row is evicted.

The number of rows follows from the number of tokens read and does not depend on scores. So the layout of a block is the same
in every layer that holds equally many rows.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..layers.attention import mask_logits
from ..reductions.head_budgets import HeadBudget
from ..state.multistate import MultiState
from .all_heads import heads_of_rank, heads_to_gather


def token_positions(clock: Tensor, active: Tensor | None, T: int) -> Tensor:
    """Return the positions ``(B, T)`` of T tokens after ``clock (B,)``, at which keys are rotated and stored.

    Tokens where ``active (B, T)`` is False are not read and take no position, wherever they are; None: all are read.
    """
    return clock[:, None] + (torch.arange(T, device=clock.device) if active is None else active.cumsum(1) - active.long())


@dataclass(frozen=True)
class BlockLayout:
    """Rows and evictions of T tokens after S rows, with R = S + T columns.

    Attributes:
        clock: ``(B, T)`` int64, positions of the tokens.
        active: ``(B, T)`` bool, False for tokens that are not read.
        last_visible: ``(B, 1 or K, R)`` int64, as in :class:`EvictionBlock`, without evictions.
        visible: ``(B, 1 or K, T, R)`` bool, rows that a token can attend to, without evictions.
        evicts: ``(B, T, 1 or K)`` bool, tokens at which a row is evicted.
        no_evictions: True if no token evicts a row.
        uniform: True if all heads of the batch hold equally many rows before and after the block.
        dtype: dtype of the attention logits.
    """

    clock: Tensor
    active: Tensor
    last_visible: Tensor
    visible: Tensor
    evicts: Tensor
    no_evictions: bool
    uniform: bool
    dtype: torch.dtype

    @cached_property
    def additive_mask(self) -> Tensor:
        """``(B, 1 or K, 1, T, R)``: 0 where ``visible``, otherwise −inf."""
        return mask_logits(torch.zeros(1, dtype=self.dtype, device=self.visible.device), self.visible[:, :, None])

    @classmethod
    def build(cls, H: MultiState, active: Tensor | None, T: int, dtype: torch.dtype) -> "BlockLayout":
        """Return the layout of T tokens that follow ``H``, with its rows sorted by position. Synchronises with the device.

        ``dtype``: that of the queries.
        """
        B, capacity, device = len(H.clock), H.capacity, H.clock.device
        budget = H.reduction if isinstance(H.reduction, HeadBudget) else None
        step = torch.arange(T, device=device)
        read = torch.ones(B, T, dtype=torch.bool, device=device) if active is None else active
        same_in_all_heads = H.no_empty_rows or bool((H.positions == H.positions[:, :1]).all())
        empty = H.empty[:, :1] if same_in_all_heads else H.empty
        own_step = torch.where(read, T, step)[:, None].expand(-1, empty.shape[1], -1)  # a token not read attends to itself only
        last_visible = torch.cat((torch.where(empty, -1, T), own_step), dim=-1)
        n_rows = (~empty).sum(-1)[:, None] + read.cumsum(1)[..., None]  # (B, T, 1 or K), without evictions
        if budget is not None:
            counts, heads = (n_rows - H.n_learned).expand(-1, -1, H.positions.shape[1]), heads_to_gather(H.heads, budget)
            counts = counts if heads is None else heads.gather(counts, 2)  # (B, T, K)
            evicts = heads_of_rank(heads, budget.evicts(counts), 2) & read[..., None]
        elif capacity is None:
            evicts = torch.zeros_like(n_rows, dtype=torch.bool)
        else:
            evicts = (n_rows > capacity) & read[..., None]
        entered_at = torch.arange(T - last_visible.shape[-1], T, device=device)  # negative for the S rows
        return cls(
            clock=token_positions(H.clock, active, T),
            active=read,
            last_visible=last_visible,
            visible=(last_visible[:, :, None] >= step[:, None]) & (entered_at <= step[:, None]),
            evicts=evicts,
            no_evictions=(capacity is None and budget is None) or not bool(evicts.any()),
            uniform=active is None and H.no_empty_rows and budget is None,
            dtype=torch.promote_types(dtype, torch.float32),
        )
