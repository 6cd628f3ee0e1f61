"""Layers with different numbers of rows per head in a cell that is split over several processes.

With sizes per head, each head usually decides from its own rows. Then the operator in the state of a rank has the sizes of the
heads of this rank, and needs no other rank. Otherwise, as under a shared budget, the ranks gather the observations of all
heads. For this they first pad their rows to the same number of columns, that of the fullest head of all ranks.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..distributed.heads import RankHeads
from ..reductions.contract import EMPTY, Reduction
from ..reductions.head_budgets import HeadBudget, HeadSizes
from ..storage.lazy_tensors import LazyTensor
from .jagged_rows import jagged_tensors, n_jagged_rows
from .multistate import MultiState


def operator_of_rank(operator: Reduction, heads: RankHeads | None) -> Reduction:
    """Return the operator of a layer for the state of one rank.

    Sizes per head become those of the heads of this rank, if the scores of a head need nothing from another rank.
    """
    if heads is None or not isinstance(operator, HeadSizes) or operator.own_heads:
        return operator
    scoring = operator.operator
    # ranks that share a head hold different query heads of it, so none of them has all weights of this head
    if scoring.reads_heads != "own" or (heads.replicas > 1 and (scoring.needs_weights or scoring.needs_queries)):
        return operator
    sizes = operator.sizes[heads.first : heads.first + heads.count]
    return HeadSizes(replace(scoring, size=(sizes,)), own_heads=True)


def operator_of_all_ranks(operator: Reduction, heads: RankHeads | None) -> Reduction:
    """Return the operator of all heads, the inverse of :func:`operator_of_rank`. Collective."""
    if heads is None or not isinstance(operator, HeadSizes) or not operator.own_heads:
        return operator
    of_ranks = heads.ranks.exchange(operator.sizes, "saving")
    sizes = tuple(size for part in of_ranks[:: heads.replicas] for size in part)
    return HeadSizes(replace(operator.operator, size=(sizes,)))


def with_columns_of_all_ranks(H: MultiState) -> MultiState:
    """Return H ``(B, K, S, D)`` with empty rows at the end, so that all ranks have the same number of columns. Collective.

    If the operator does not gather rows of heads that hold different numbers, H itself is returned.
    """
    gathers = isinstance(H.reduction, HeadBudget) and H.reduction.reads_heads == "all"
    return H if H.heads is None or not gathers else padded_to_all_ranks(H, H.heads)


def padded_to_all_ranks(H: MultiState, heads: RankHeads) -> MultiState:
    """Return H with empty rows at the end, as :func:`with_columns_of_all_ranks`, for any operator. Collective."""
    S = H.positions.shape[2]
    most = int(heads.ranks.all_gather(torch.tensor(S, device=H.positions.device), "heads").amax())
    if most == S:
        return H

    def with_columns(name: str, x: Tensor) -> Tensor:
        return pad(x, (*(0, 0) * (x.ndim - 3), 0, most - S), value=EMPTY if name == "positions" else 0)

    return H.with_rows({name: with_columns(name, x) for name, x in H.rows.items()}, H.clock)


def jagged_lazily(whole: Mapping[str, LazyTensor], H: MultiState, prefix: str) -> dict[str, LazyTensor]:
    """Return the jagged rows of all heads by name, after ``prefix``, as tensors that are read later. Collective.

    Args:
        whole: the padded rows of all heads, with the columns of ``H``. They are read on every rank; only rank 0 has the values.
        H: the rows of this rank, those of each head first.
    """
    assert H.heads is not None
    head_rows, S = H.heads.gather((~H.empty).sum(-1), 1), H.positions.shape[2]  # (B, K)
    held = torch.arange(S, device=head_rows.device) < head_rows[..., None]

    def read(x: LazyTensor, shape: tuple[int, ...]) -> Tensor:
        rows = x.read()
        return rows.new_empty(shape) if rows.is_meta else jagged_tensors({"": rows}, held.to(rows.device))[""]

    M, found = n_jagged_rows(head_rows), {f"{prefix}head_rows": LazyTensor.of(head_rows)}
    for name, x in whole.items():
        shape = (len(head_rows), 1, M, *x.shape[3:])
        found[prefix + name] = LazyTensor(shape, x.dtype, partial(read, x, shape))
    return found
