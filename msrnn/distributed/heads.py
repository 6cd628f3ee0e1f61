"""The key/value heads of one rank: gather those of all ranks, or take those of this rank.

With K key/value heads and W ranks, each rank holds K / W heads, or one head that W / K ranks share. Ranks that share a
head hold different query heads of it. K_r and G_r are the numbers of this rank.
"""

from dataclasses import dataclass

from torch import Tensor

from ..errors import Error
from .placement import Placement
from .ranks import Ranks


@dataclass(frozen=True)
class RankHeads:
    """The heads of one rank.

    Attributes:
        ranks: the group.
        n_kv_heads: K, the number of key/value heads of the model.

    Raises:
        Error: ``n_kv_heads`` is neither a multiple nor a divisor of the number of ranks.
    """

    ranks: Ranks
    n_kv_heads: int

    def __post_init__(self) -> None:
        K, W = self.n_kv_heads, self.ranks.size
        if K % W and W % K:
            raise Error(f"{K} key/value heads on {W} ranks; expected a multiple or a divisor of {W} heads")

    @property
    def count(self) -> int:
        """K_r, the number of key/value heads of this rank."""
        return max(1, self.n_kv_heads // self.ranks.size)

    @property
    def replicas(self) -> int:
        """The number of ranks that hold the same key/value head, each with other query heads of it."""
        return max(1, self.ranks.size // self.n_kv_heads)

    @property
    def first(self) -> int:
        """The first key/value head of this rank."""
        return self.first_of(self.ranks.rank)

    def first_of(self, rank: int) -> int:
        """Return the first key/value head of ``rank``."""
        return rank * self.n_kv_heads // self.ranks.size

    @property
    def placement(self) -> Placement:
        """The slices of a tensor of a state, ``(B, K, …)``."""
        firsts = [self.first_of(rank) for rank in range(self.ranks.size)]
        return Placement(1, tuple((first, first + self.count) for first in firsts))

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """Return ``x`` of all key/value heads, ``(…, K_r, …) -> (…, K, …)``."""
        parts = self.ranks.all_gather(x, "heads").movedim(0, dim)  # (…, W, K_r, …)
        return parts.flatten(dim, dim + 1).unflatten(dim, (self.n_kv_heads, self.replicas)).select(dim + 1, 0)

    def gather_query_heads(self, x: Tensor) -> Tensor:
        """Return ``x`` of all query heads, ``(B, K_r, G_r, …) -> (B, K, G, …)``."""
        parts = self.ranks.all_gather(x, "heads").movedim(0, 1)  # (B, W, K_r, G_r, …)
        return parts.reshape(x.shape[0], self.n_kv_heads, self.replicas * x.shape[2], *x.shape[3:])

    def own(self, x: Tensor, dim: int) -> Tensor:
        """Return the key/value heads of this rank, ``(…, K, …) -> (…, K_r, …)``."""
        return x.narrow(dim, self.first, self.count)

    def own_query_heads(self, x: Tensor) -> Tensor:
        """Return the query heads of this rank, ``(B, K, G, …) -> (B, K_r, G_r, …)``."""
        n = x.shape[2] // self.replicas
        return self.own(x, 1).narrow(2, self.ranks.rank % self.replicas * n, n)

    def mean_scores(self, scores: Tensor) -> Tensor:
        """Return the mean of the scores over the ranks. Every rank adds in the same order, so all evict the same row."""
        return self.ranks.all_gather(scores, "scores").mean(0)

    def __str__(self) -> str:
        heads = f"head {self.first}" if self.count == 1 else f"heads {self.first} to {self.first + self.count - 1}"
        return f"key/value {heads} of {self.n_kv_heads} (rank {self.ranks.rank} of {self.ranks.size})"
