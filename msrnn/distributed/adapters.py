"""LoRA adapters of split matrices, y = x Wᵀ + s (x Aᵀ) Bᵀ.

A rank that has some rows of W (q, k, v, gate, up and the LM head) has these rows of B and the whole A. A rank that has some
columns of W (o and down) has these columns of A and the whole B; of the adapter only ``x Aᵀ`` is summed, r numbers per token.
"""

from torch import Tensor, nn
from torch.nn.functional import linear

from ..layers.lora import LoraLinear
from .gradients import copy_to_ranks, gather_last_dim, sum_over_ranks
from .heads import RankHeads
from .modules import add_messages, copy_to_replicas
from .rank_part import COLUMNS, RankPart
from .ranks import Ranks


class RowsAdapter:
    """An adapter of a matrix with some of the rows. Every rank computes a part of the gradient of A."""

    ranks: Ranks
    replicated: RankHeads | None
    """The heads of the rows, if several ranks hold the same ones; each computes a part of the gradient of B."""
    lora_A: Tensor
    lora_B: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Return x Aᵀ, ``(…, E) -> (…, r)``."""
        return linear(x, copy_to_ranks(self.lora_A, self.ranks))

    def expand(self, x: Tensor) -> Tensor:
        """Return x Bᵀ, ``(…, r) -> (…, F / W)``."""
        return linear(x, self.lora_B if self.replicated is None else copy_to_replicas(self.lora_B, self.replicated))


class HeadAdapter:
    """An adapter of the LM head, with the rows of some ids."""

    ranks: Ranks
    sizes: tuple[int, ...]
    """Number of ids of each rank."""
    lora_A: Tensor

    def project(self, x: Tensor) -> Tensor:
        """Return x Aᵀ, ``(…, E) -> (…, r)``."""
        return linear(copy_to_ranks(x, self.ranks), copy_to_ranks(self.lora_A, self.ranks))

    def expand(self, x: Tensor) -> Tensor:
        """Return x Bᵀ of all ids, ``(…, r) -> (…, V)``."""
        return gather_last_dim(super().expand(x), self.ranks, self.sizes, "logits")  # type: ignore[misc]


class ColumnsAdapter:
    """An adapter of a matrix with some of the columns."""

    ranks: Ranks

    def project(self, x: Tensor) -> Tensor:
        """Return x Aᵀ of all ranks, ``(…, E / W) -> (…, r)``."""
        return sum_over_ranks(super().project(x), self.ranks, "adapters")  # type: ignore[misc]


def split_first_values_(rank_part: RankPart, path: str, adapter: LoraLinear) -> None:
    """Give every rank the random A of rank 0, or its columns of it. B is zero and has the rows of this rank."""
    A = rank_part.ranks.broadcast_(adapter.lora_A.data, "adapters")
    if (place := rank_part.placement(f"{path}.lora_A", A)) is not None:
        adapter.lora_A = nn.Parameter(place.take(A, rank_part.ranks.rank).contiguous())


def add_messages_to_adapter(rank_part: RankPart, path: str, adapter: LoraLinear) -> None:
    """Let the adapter of the matrix ``path``, which has the slices of this rank, exchange messages."""
    name = path.rpartition(".")[2]
    if name == "head":
        add_messages(adapter, HeadAdapter, ranks=rank_part.ranks, sizes=rank_part.vocab_sizes)
    elif name in COLUMNS:
        add_messages(adapter, ColumnsAdapter, ranks=rank_part.ranks)
    else:
        shared = name in ("k", "v") and rank_part.heads.replicas > 1
        add_messages(adapter, RowsAdapter, ranks=rank_part.ranks, replicated=rank_part.heads if shared else None)
