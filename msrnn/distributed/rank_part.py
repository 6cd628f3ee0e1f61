"""The part of a model that one rank holds: its slice of each parameter, and the config of the modules that have these sizes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from ..errors import Error
from ..storage.lazy_tensors import LazyTensor
from .heads import RankHeads
from .modules import (
    PartialGradients,
    SplitEmbedding,
    SplitHead,
    SplitLayer,
    SummedOutput,
    WholeWidthNorm,
    add_messages,
)
from .placement import ADAPTER_PARTS, Placement
from .ranks import Ranks

QUERY_ROWS, KEY_ROWS, MLP_ROWS = ("q", "q_bias", "sinks"), ("k", "v", "k_bias", "v_bias"), ("gate", "up")
VOCABULARY_ROWS = ("embed", "head")
COLUMNS = {"o": "attention output", "down": "MLP output"}
"""The matrices that are split by columns, each with the purpose of the messages that sum its outputs."""
PARTS = ("weight", "codes", "scales", "zeros", "scales_and_zeros")
"""Names of the tensors of a matrix: its parameter, or its parts if it is packed, and their buffer of scales and zeros."""


@dataclass(frozen=True)
class RankPart:
    """The part of a model that one rank holds.

    Attributes:
        config: of the whole model.
        ranks: the group.
        norms_whole_width: True if the norms of queries and of keys are over all heads together (OLMo 2).

    Raises:
        Error: the query heads, the MLP elements, the ids or the key/value heads cannot be divided between the ranks.
    """

    config: Any
    ranks: Ranks
    norms_whole_width: bool = False

    def __post_init__(self) -> None:
        W, config = self.ranks.size, self.config
        for name in ("n_heads", "ffn_width"):
            if (found := getattr(config, name)) % W:
                raise Error(f"config: {name} is {found}; expected a multiple of {W}, the number of ranks")
        if config.vocab_size < W:
            raise Error(f"config: vocab_size is {config.vocab_size}; expected at least {W}, the number of ranks")
        RankHeads(self.ranks, config.n_kv_heads)  # for its check

    @cached_property
    def heads(self) -> RankHeads:
        """The heads of this rank."""
        return RankHeads(self.ranks, self.config.n_kv_heads)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """The number of ids of each rank. They differ by at most one."""
        V, W = self.config.vocab_size, self.ranks.size
        return tuple(V // W + (rank < V % W) for rank in range(W))

    @property
    def local_config(self) -> Any:
        """The config of modules with the sizes of this rank."""
        c, W = self.config, self.ranks.size
        sizes = {"n_heads": c.n_heads // W, "n_kv_heads": self.heads.count, "ffn_width": c.ffn_width // W}
        sizes["vocab_size"] = self.vocab_sizes[self.ranks.rank]
        return replace(c, **sizes, bos_token_id=None, eos_token_ids=())

    def placement(self, name: str, x: Tensor | LazyTensor) -> Placement | None:
        """Return where the ranks hold a tensor of the model; None if each holds the whole tensor.

        Args:
            name: of a parameter, of a part of a packed matrix, or of A or B of an adapter.
            x: a tensor with its dtype and its number of dimensions, such as a slice.

        Raises:
            Error: the borders of the slices of a packed matrix are not those of its groups.
        """
        path, _, part = name.rpartition(".")
        if part not in (*PARTS, *ADAPTER_PARTS):  # a vector, such as a bias
            path, part = name, "weight"
        stem = path.removesuffix(".base_layer").rpartition(".")[2]
        c, W, D = self.config, self.ranks.size, self.config.head_dim
        if stem in ("q_norm", "k_norm"):
            if not self.norms_whole_width:
                return None
            stem = stem[0]
        if stem in QUERY_ROWS or stem == "o":
            bounds = _even_bounds(c.n_heads * (1 if stem == "sinks" else D), W)
        elif stem in KEY_ROWS:
            bounds = tuple((first * D, stop * D) for first, stop in self.heads.placement.bounds)
        elif stem in MLP_ROWS or stem == "down":
            bounds = _even_bounds(c.ffn_width, W)
        elif stem in VOCABULARY_ROWS:
            ends = [sum(self.vocab_sizes[: rank + 1]) for rank in range(W)]
            bounds = tuple(zip([0, *ends], ends, strict=False))
        else:
            return None
        return Placement.of_part(name, part, x, bounds, by_columns=stem in COLUMNS)

    def take(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return this rank's slices of the tensors of the whole model. No tensor is read yet.

        Raises:
            Error: as :meth:`placement`.
        """
        placed = {name: (x, self.placement(name, x)) for name, x in tensors.items()}
        return {name: x if place is None else place.take_lazily(x, self.ranks.rank) for name, (x, place) in placed.items()}

    def add_messages(self, cell: nn.Module) -> None:
        """Let the modules of ``cell``, which have the sizes of :attr:`local_config`, exchange messages."""
        ranks, heads = self.ranks, self.heads
        vocabulary = {"ranks": ranks, "sizes": self.vocab_sizes}
        add_messages(cell.embed, SplitEmbedding, **vocabulary)  # type: ignore[arg-type]
        if hasattr(cell, "head"):
            add_messages(cell.head, SplitHead, **vocabulary)  # type: ignore[arg-type]
        for layer in cell.layers:  # type: ignore[union-attr]
            self._add_messages_to_layer(layer, heads)

    def _add_messages_to_layer(self, layer: Any, heads: RankHeads) -> None:
        ranks, replicated = self.ranks, heads.replicas > 1
        shared: dict[str, RankHeads | None] = {}
        for name, module in layer.named_children():
            if name in COLUMNS:
                add_messages(module, SummedOutput, ranks=ranks, purpose=COLUMNS[name])
            elif name in ("k", "v") and replicated and "weight" in module._parameters:
                add_messages(module, PartialGradients, ranks=ranks, shared={"weight": heads})
            elif name in ("q_norm", "k_norm"):
                self._add_messages_to_norm(name, module, heads)
        add_messages(layer, SplitLayer, ranks=ranks)
        if replicated:
            shared = {name: heads for name in ("k_bias", "v_bias") if name in layer._parameters}
        if shared:
            add_messages(layer, PartialGradients, shared=shared)

    def _add_messages_to_norm(self, name: str, module: Any, heads: RankHeads) -> None:
        n_heads = self.config.n_heads if name == "q_norm" else heads.n_kv_heads
        if not self.norms_whole_width:
            add_messages(module, PartialGradients, ranks=self.ranks, shared={"weight": None})
            return
        replicated = name == "k_norm" and heads.replicas > 1
        adds, width = not replicated or self.ranks.rank % heads.replicas == 0, n_heads * self.config.head_dim
        add_messages(module, WholeWidthNorm, ranks=self.ranks, whole_width=width, adds_squares=adds)
        if replicated:
            add_messages(module, PartialGradients, shared={"weight": heads})


def _even_bounds(size: int, n: int) -> tuple[tuple[int, int], ...]:
    return tuple((rank * size // n, (rank + 1) * size // n) for rank in range(n))
