"""What many tokens find before any of them has looked: whom each would see, and when somebody has to leave."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..layers.attention import mask_logits
from ..state.multistate import MultiState


def token_positions(clock: Tensor, active: Tensor | None, T: int) -> Tensor:
    """Return the positions ``(B, T)`` of T tokens after ``clock (B,)``, at which keys are rotated and stored.

    Tokens where ``active (B, T)`` is False are not read and take no position, wherever they are; None: all are read.
    """
    return clock[:, None] + (torch.arange(T, device=clock.device) if active is None else active.cumsum(1) - active.long())


@dataclass(frozen=True)
class Frame:
    """What T tokens find before any of them has looked: the same in every layer that holds as many rows, so it is made once.

    Attributes:
        clock: ``(B, T)`` int64, the tokens' positions.
        active: ``(B, T)`` bool, whether a token is read.
        until: ``(B, 1 or K, R)`` int64, as of a :class:`Block`, if nobody leaves.
        hidden: ``(B, 1 or K, T, R)`` bool, the rows that each token does not see then.
        leaves: ``(B, T, 1 or K)`` bool, at which tokens a row leaves; which one does not matter to that.
        still: whether none does at any.
        even: whether all heads hold as many rows, before and after.
        dtype: of logits.
    """

    clock: Tensor
    active: Tensor
    until: Tensor
    hidden: Tensor
    leaves: Tensor
    still: bool
    even: bool
    dtype: torch.dtype

    @cached_property
    def veil(self) -> Tensor:
        """``(B, 1 or K, 1, T, R)``: what hides the ``hidden`` rows when it is added to logits."""
        return mask_logits(torch.zeros(1, dtype=self.dtype, device=self.hidden.device), ~self.hidden[:, :, None])

    @classmethod
    def of(cls, H: MultiState, active: Tensor | None, T: int) -> "Frame":
        """Of T tokens that ``H``, in order, is to read; ``active (B, T)``, None: all are read. Waits for the device."""
        B, bound = len(H.clock), H.capacity
        even, device = active is None and H.no_empty_rows, H.clock.device
        time = torch.arange(T, device=device)
        read = torch.ones(B, T, dtype=torch.bool, device=device) if active is None else active
        clock = token_positions(H.clock, active, T)
        empty = H.empty[:, :1] if H.no_empty_rows or bool((H.positions == H.positions[:, :1]).all()) else H.empty
        alone = torch.where(read, T, time)[:, None].expand(-1, empty.shape[1], -1)
        until = torch.cat((torch.where(empty, -1, T), alone), dim=-1)
        held = (~empty).sum(-1)[:, None] + read.cumsum(1)[..., None]  # (B, T, 1 or K), if nobody leaves
        leaves = torch.zeros_like(held, dtype=torch.bool) if bound is None else (held > bound) & read[..., None]
        still = bound is None or not bool(leaves.any())
        came = torch.arange(T - until.shape[-1], T, device=device)  # carried rows before 0
        hidden = (until[:, :, None] < time[:, None]) | (came > time[:, None])
        dtype = torch.promote_types(H.keys.dtype, torch.float32)
        return cls(clock, read, until, hidden, leaves, still, even, dtype)
