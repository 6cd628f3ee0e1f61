"""Collectives with derivatives. Every rank computes the same loss.

A tensor is whole (the same on all ranks, and so is its gradient), a slice (each rank has its own part), or a partial sum. The
backward pass of each function here calls functions of the same kind, so derivatives of higher order are defined too. The
functions of ``torch.distributed.nn`` sum the gradients of all ranks, as if every rank had another loss.
"""

from typing import Any

import torch
from torch import Tensor

from .ranks import Ranks


def sum_over_ranks(x: Tensor, ranks: Ranks, purpose: str) -> Tensor:
    """Return the sum of the partial sums ``x``: a new tensor if ``x`` has a gradient, or else ``x``, overwritten.

    This is g of Megatron-LM (arXiv:1909.08053, sec. 3).
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Sum.apply(x, ranks, purpose)
    return ranks.all_reduce_(x.contiguous(), purpose)


def copy_to_ranks(x: Tensor, ranks: Ranks) -> Tensor:
    """Return the whole ``x`` as the input of slices. Its gradient is summed over the ranks (f of Megatron-LM, sec. 3)."""
    return _Copy.apply(x, ranks) if torch.is_grad_enabled() and x.requires_grad else x


def sum_both_ways(x: Tensor, ranks: Ranks, purpose: str) -> Tensor:
    """Return the sum of ``x`` over the ranks, from which each rank computes a part of the loss: its gradient is summed too."""
    return copy_to_ranks(sum_over_ranks(x, ranks, purpose), ranks)


def gather_last_dim(x: Tensor, ranks: Ranks, sizes: tuple[int, ...], purpose: str) -> Tensor:
    """Return the slices of all ranks one after another, ``(…, sizes[rank]) -> (…, sum(sizes))``."""
    if torch.is_grad_enabled() and x.requires_grad:
        return _Gather.apply(x, ranks, sizes, purpose)
    return _gather(x, ranks, sizes, purpose)


def _gather(x: Tensor, ranks: Ranks, sizes: tuple[int, ...], purpose: str) -> Tensor:
    largest = max(sizes)
    padded = x if x.shape[-1] == largest else torch.nn.functional.pad(x, (0, largest - x.shape[-1]))
    parts = ranks.all_gather(padded, purpose)
    return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, purpose: str) -> Tensor:
        ctx.ranks = ranks
        return ranks.all_reduce_(x.clone(memory_format=torch.contiguous_format), purpose)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        return copy_to_ranks(d, ctx.ranks), None, None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(d, ctx.ranks, "gradients"), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, sizes: tuple[int, ...], purpose: str) -> Tensor:
        ctx.ranks, ctx.sizes, ctx.purpose = ranks, sizes, purpose
        return _gather(x, ranks, sizes, purpose)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        return _Own.apply(d, ctx.ranks, ctx.sizes, ctx.purpose), None, None, None


class _Own(torch.autograd.Function):
    """This rank's slice of a whole tensor; the gradient is gathered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, sizes: tuple[int, ...], purpose: str) -> Tensor:
        ctx.ranks, ctx.sizes, ctx.purpose = ranks, sizes, purpose
        return x.narrow(-1, sum(sizes[: ranks.rank]), sizes[ranks.rank]).clone()

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        return gather_last_dim(d, ctx.ranks, ctx.sizes, ctx.purpose), None, None, None
