"""Records of an unroll, from which :mod:`trace` builds the state after any token; and work that layers share."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layers.attention import LogitRule
from ..reductions.contract import is_same_operator
from ..reductions.head_budgets import HeadBudget
from ..state.multistate import MultiState
from .block_evictions import evicted_positions
from .block_layout import BlockLayout
from .block_scores import BlockScores, EvictionBlock
from .projected_tokens import ProjectedTokens

STATS_HISTORY_TOKENS = 32
"""Maximum number of tokens of a block for which the statistics after every token are recorded. Drafts are shorter."""


@dataclass(frozen=True)
class BlockRecord:
    """One block of one layer.

    Attributes:
        x: ``(B, T, E)``, input of the layer; None unless the operator needs it.
        q: ``(B, N, T, D)``, rotated, like ``k`` and ``v (B, K, T, D)``; as the layer projects them, also for int8 rows.
        active: ``(B, T)`` bool, False for tokens that are not read.
        row_stats: statistics before the first token, ``(B, K, S)`` or ``(B, K, S, n)`` each.
        rows: ``(B, K, S + T)`` int64, positions of the rows, −1 for absent ones. The last T rows are those of the tokens.
        last_visible: ``(B, 1 or K, S + T)`` int64, as in :class:`EvictionBlock`.
        iterations: number of calls that settled evictions, without the first call for the proposal; 0 if no row was evicted.
        scores: ``(B, 1 or K, T, S + T)``, NaN for rows that a token cannot attend to; None unless requested.
        stats_by_token: statistics after each token, ``(B, T, K, S + T, …)`` each; None for a block of more than
            ``STATS_HISTORY_TOKENS`` tokens.
        stored: keys and values of all ``rows`` as H stores them, by name, if this is the only block; otherwise None.
        rule: of the attention logits.
    """

    x: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    active: Tensor
    row_stats: dict[str, Tensor]
    rows: Tensor
    last_visible: Tensor
    iterations: int
    scores: Tensor | None
    stats_by_token: dict[str, Tensor] | None
    stored: dict[str, Tensor] | None
    rule: LogitRule

    @property
    def entered(self) -> Tensor:
        """``(B, K, T)`` int64, positions of the tokens."""
        return self.rows[..., -self.q.shape[2] :]

    @property
    def inputs(self) -> Tensor:
        """``(B, T, E)``, the input of the layer; ``(B, T, 0)`` if it is not recorded, because the operator does not read it."""
        return self.q.new_empty(*self.active.shape, 0) if self.x is None else self.x

    @property
    def left(self) -> Tensor:
        """``(B, K, T)`` int64, the position evicted at each token, −1 for none."""
        return evicted_positions(self.rows, self.last_visible, self.q.shape[2])


@dataclass
class LayerRecorder:
    """The record of one layer, block by block.

    Attributes:
        want_scores: True: the operator's scores are recorded.
        blocks: the blocks so far.
    """

    want_scores: bool = False
    blocks: list[BlockRecord] = field(default_factory=list)

    def add(
        self,
        tokens: ProjectedTokens,
        block: EvictionBlock,
        parts: list[BlockScores],
        row_stats: dict[str, Tensor],
        stored: dict[str, Tensor] | None,
    ) -> None:
        """Record a block with its evictions. ``stored``: keys and values of all rows, if no block follows."""
        scores, history = None, None
        if self.want_scores:
            scores = torch.cat([y.score.masked_fill(y.absent, torch.nan) for y in parts], dim=1).transpose(1, 2)
        if block.T <= STATS_HISTORY_TOKENS:
            history = {name: torch.cat([y.row_stats[name] for y in parts], dim=1) for name in row_stats}
        self.blocks.append(
            BlockRecord(
                x=tokens.x if block.reduction.needs_input else None,
                q=tokens.q,
                k=tokens.k,
                v=tokens.v,
                active=block.layout.active,
                row_stats=row_stats,
                rows=block.positions,
                last_visible=block.last_visible,
                iterations=0 if block.layout.no_evictions else len(parts),
                scores=scores,
                stats_by_token=history,
                stored=None if self.blocks else stored,
                rule=tokens.rule,
            )
        )


@dataclass
class SharedAcrossLayers:
    """Work on the same tokens that the next layers reuse, and how the layers handle their states.

    Attributes:
        donate: True: the storage of the states before the tokens may be overwritten.
        make_state: False: no state after the tokens is needed, because no tokens follow.
        layouts: by first token, stop token, number of rows and capacity; only where no row is empty.
        positions_only_evictions: evictions of an operator that reads positions only, by first token.
    """

    donate: bool = False
    make_state: bool = True
    layouts: dict[tuple[int, int, int, int | None], BlockLayout] = field(default_factory=dict)
    positions_only_evictions: dict[int, EvictionBlock] = field(default_factory=dict)

    def layout(self, H: MultiState, active: Tensor | None, start: int, stop: int, dtype: torch.dtype) -> BlockLayout:
        """Return the layout of tokens ``start`` to ``stop`` of ``active (B, T)``, which follow ``H``; ``dtype`` of queries."""
        key = (start, stop, H.positions.shape[2], H.capacity)
        shared = H.no_empty_rows and not isinstance(H.reduction, HeadBudget)
        layout = self.layouts.get(key) if shared else None
        if layout is None:
            layout = BlockLayout.build(H, None if active is None else active[:, start:stop], stop - start, dtype)
            if shared:
                self.layouts[key] = layout
        return layout

    def evictions(self, block: EvictionBlock, start: int) -> EvictionBlock | None:
        """Return the block with the evictions of an earlier layer, if they are the same; otherwise None."""
        known = self.positions_only_evictions.get(start)
        same = known and is_same_operator(known.reduction, block.reduction) and known.positions.equal(block.positions)
        return known if same else None
