"""Classes for the modules of a split cell, which exchange messages before or after they compute.

A split cell has the modules of the whole cell, with smaller sizes. :func:`add_messages` gives a module a class that is derived
from its own class and from one of the classes here.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.embedding import embedding_weight
from ..layers.linear import linear
from ..layers.packed.modules import Int8Embedding
from .gradients import copy_to_ranks, gather_last_dim, sum_both_ways, sum_over_ranks
from .heads import RankHeads
from .ranks import Ranks


def add_messages(module: nn.Module, kind: type, **attributes: Any) -> None:
    """Replace the class of ``module`` by one that is derived from ``kind`` and the old one. Parameters and hooks stay.

    Args:
        module: the module, with the sizes of this rank.
        kind: a class of this file.
        attributes: the attributes that ``kind`` annotates.
    """
    own: Any = type(module)
    module.__class__ = _derived(kind, own)
    vars(module).update(attributes)


@lru_cache
def _derived(kind: Any, own: Any) -> Any:
    return type(own.__name__, (kind, own), {"__module__": own.__module__})


class SplitLayer:
    """A layer with a slice of q, k, v, gate and up: the gradients of their inputs are summed."""

    ranks: Ranks

    def qkv_heads(self, x: Tensor, *arguments: Any) -> Any:
        return super().qkv_heads(copy_to_ranks(x, self.ranks), *arguments)  # type: ignore[misc]

    def mlp(self, x: Tensor) -> Tensor:
        return super().mlp(copy_to_ranks(x, self.ranks))  # type: ignore[misc]


class SummedOutput:
    """A linear map with a slice of the columns. Its output is a partial sum, which is summed over the ranks."""

    ranks: Ranks
    purpose: str

    def forward(self, x: Tensor) -> Tensor:
        """Return x Wᵀ of all ranks, ``(…, E / W) -> (…, F)``."""
        return sum_over_ranks(super().forward(x), self.ranks, self.purpose)  # type: ignore[misc]


class SplitVocabulary:
    """An embedding or LM head with the rows of some ids."""

    ranks: Ranks
    sizes: tuple[int, ...]
    """Number of ids of each rank."""

    @property
    def first_id(self) -> int:
        """The first id of this rank."""
        return sum(self.sizes[: self.ranks.rank])


class SplitEmbedding(SplitVocabulary):
    """An embedding with the rows of some ids. The ids of other ranks become 0 before the sum over the ranks."""

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids ``(…,)`` as ``(…, E)``."""
        local = ids - self.first_id
        elsewhere = (local < 0) | (local >= self.sizes[self.ranks.rank])
        x = super().forward(local.masked_fill(elsewhere, 0))  # type: ignore[misc]
        return sum_over_ranks(x.masked_fill(elsewhere[..., None], 0), self.ranks, "embedding")

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of all ids, ``(…, E) -> (…, V)``."""
        x = copy_to_ranks(x, self.ranks)
        own = super().logits(x) if isinstance(self, Int8Embedding) else linear(x, embedding_weight(self))  # type: ignore
        return gather_last_dim(own, self.ranks, self.sizes, "logits")


class SplitHead(SplitVocabulary):
    """An LM head with the rows of some ids."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of all ids, ``(…, E) -> (…, V)``."""
        own = super().forward(copy_to_ranks(x, self.ranks))  # type: ignore[misc]
        return gather_last_dim(own, self.ranks, self.sizes, "logits")


class PartialGradients:
    """A module with parameters that several ranks hold. Each computes a part of the gradient, and the parts are summed.

    The parameters are the norms of single heads, which all ranks hold, and those of a key/value head that several ranks hold.
    """

    ranks: Ranks
    shared: dict[str, RankHeads | None]
    """By name of the parameter: the heads that it belongs to, or None if it is used for all heads."""

    def __getattr__(self, name: str) -> Any:
        x = super().__getattr__(name)  # type: ignore[misc]
        if name not in vars(self)["shared"]:
            return x
        heads = self.shared[name]
        return copy_to_ranks(x, self.ranks) if heads is None else copy_to_replicas(x, heads)


class WholeWidthNorm:
    """RMSNorm over a width that is split between the ranks (OLMo 2)."""

    ranks: Ranks
    whole_width: int
    adds_squares: bool
    """False if an earlier rank holds the same heads and has added their squares to the mean."""
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``(…, E / W)`` by the mean square of all E elements."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        squares = wide.square().sum(-1, keepdim=True) * (1 if self.adds_squares else 0)
        mean = sum_both_ways(squares, self.ranks, "norms") / self.whole_width
        return (wide * (mean + self.eps).rsqrt() * self.gain(wide.dtype)).to(x.dtype)  # type: ignore[attr-defined]


def copy_to_replicas(x: Tensor, heads: RankHeads) -> Tensor:
    """Return a parameter of shared heads. Its gradient is summed over the ranks with the same heads."""
    return _CopyToReplicas.apply(x, heads) if torch.is_grad_enabled() and x.requires_grad else x


class _CopyToReplicas(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: RankHeads) -> Tensor:
        ctx.heads = heads
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        heads = ctx.heads
        parts = heads.ranks.all_gather(d, "gradients").unflatten(0, (heads.n_kv_heads, heads.replicas))
        return parts[heads.first].sum(0), None
