"""The evictions of a block in a cell that is split over several processes: solved for all heads, where the operator needs them.

Every rank gathers the attention logits of the block once and solves the evictions of all heads, so all ranks do the same number
of iterations. If each solved its own heads, one rank could need more iterations than another.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..distributed.heads import RankHeads
from .all_heads import gather_weights, heads_of_rank, heads_to_gather
from .block_fields import BlockFields
from .block_layout import BlockLayout
from .block_scores import BlockScores, EvictionBlock


def gather_block(block: EvictionBlock) -> EvictionBlock:
    """Return the block of all heads if its operator needs them; otherwise the block itself."""
    heads, operator = heads_to_gather(block.heads, block.reduction), block.reduction
    if heads is None:
        return block
    layout = _gather_layout(heads, block.layout, block.positions.shape[1])
    return replace(
        block,
        layout=layout,
        logits=gather_weights(heads, operator, block.logits),
        positions=heads.gather(block.positions, 1),
        last_visible=layout.last_visible,
        row_stats={name: heads.gather(x, 1) for name, x in block.row_stats.items()},
        fields=_gather_fields(heads, block.fields),
        heads=None,
    )


def take_own_block(
    block: EvictionBlock, whole: EvictionBlock, parts: list[BlockScores]
) -> tuple[EvictionBlock, list[BlockScores]]:
    """Return the block of this rank with its evictions, and its scores.

    Args:
        block: of this rank, without evictions.
        whole: the block that :func:`gather_block` returned for it, with the evictions of all heads.
        parts: the scores of all heads.
    """
    heads = block.heads
    if heads is None or whole.heads is not None:
        return whole, parts
    if whole.last_visible is not whole.layout.last_visible:
        block = replace(block, last_visible=heads_of_rank(heads, whole.last_visible))
    return block, [_own_scores(heads, x) for x in parts]


def _own_scores(heads: RankHeads, scores: BlockScores) -> BlockScores:
    return replace(
        scores,
        weights=heads.own_query_heads(scores.weights),
        row_stats={name: heads.own(x, 2) for name, x in scores.row_stats.items()},
        score=heads_of_rank(heads, scores.score, 2),
        absent=heads_of_rank(heads, scores.absent, 2),
    )


def _gather_fields(heads: RankHeads, fields: BlockFields) -> BlockFields:
    names = ("keys", "values", "attended", "value_scales")
    rows: dict[str, Any] = {name: heads.gather(x, 1) for name in names if (x := getattr(fields, name)) is not None}
    queries = None if fields.queries is None else heads.gather_query_heads(fields.queries)
    return replace(fields, **rows, queries=queries)


def _gather_layout(heads: RankHeads, layout: BlockLayout, K: int) -> BlockLayout:
    """Return the layout of all heads. If no row is empty, it is the same for every head."""
    if layout.uniform:
        return layout

    def gather(x: Tensor, dim: int) -> Tensor:
        return heads.gather(x.expand(*x.shape[:dim], K, *x.shape[dim + 1 :]), dim)

    evicts = gather(layout.evicts, 2)
    return replace(
        layout,
        last_visible=gather(layout.last_visible, 1),
        visible=gather(layout.visible, 1),
        evicts=evicts,
        no_evictions=not bool(evicts.any()),
    )
