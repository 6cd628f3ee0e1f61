"""The trace of one layer: evicted positions, scores, and the state after any number of tokens."""

from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import Error
from ..layers.differentiation import to_list
from ..reductions.contract import EMPTY
from ..reductions.head_budgets import HeadBudget
from ..reductions.shared_budget import SharedBudget
from ..state.multistate import MultiState
from ..state.quantised_rows import dequantise_rows, encode_rows
from ..state.split_heads import with_columns_of_all_ranks
from ..state.stacking import concat_batches
from .records import LayerRecorder
from .unroll import unroll_layer


class PrefixQuery(NamedTuple):
    """A request for states: batch rows, and a number of tokens for each. It is the same for all layers."""

    n: Tensor
    """``(B',)`` int64, number of tokens; the text of a row may have ended before."""
    rows: Tensor
    """``(B',)`` int64, batch rows."""
    all_rows: bool
    """True if ``rows`` are all batch rows in order."""
    n_read: Tensor
    """``(B',)`` int64, number of tokens among the first ``n`` that are read."""
    uniform: bool
    """True if all n tokens are read and n is the same for all rows."""
    T: int
    """Number of tokens of the trace."""

    @classmethod
    def of(cls, active: Tensor, n: Tensor, rows: Tensor) -> "PrefixQuery":
        """Return the request for the first ``n`` tokens of ``rows``, of which those where ``active (B, T)`` are read."""
        B, T = active.shape
        n_read = (active[rows] & (torch.arange(T, device=n.device) < n[:, None])).sum(1)
        uniform = bool((n == n[:1]).all() and (n_read == n).all())
        return cls(n, rows, rows.equal(torch.arange(B, device=rows.device)), n_read, uniform, T)

    def kept_mask(self, last_visible: Tensor) -> Tensor:
        """Return the rows that are retained, ``(…, B', 1 or K, S + T)`` bool, from ``last_visible (…, B, 1 or K, S + T)``."""
        entered_at, n = torch.arange(self.T - last_visible.shape[-1], self.T, device=last_visible.device), self.n[:, None, None]
        some = last_visible if self.all_rows else last_visible.index_select(-3, self.rows)
        return (some >= n) & (entered_at < n)


class LayerTrace:
    """One layer of a :class:`Trace`: T tokens read after a state of S rows.

    Attributes:
        rows: ``(B, K, S + T)`` int64, positions of all rows: the S rows in order of position, then the T tokens; −1 for none.
        scores: ``(B, 1 or K, T, S + T)``, the operator's score of each row at each token, +inf for learned rows, NaN for rows
            that the token cannot attend to; None unless requested.
        active: ``(B, T)`` bool, False for tokens that are not read.
    """

    def __init__(self, H: MultiState, recorder: LayerRecorder):
        before, self._blocks = with_columns_of_all_ranks(H.sorted_by_position()), recorder.blocks
        whole = self._blocks[0].stored if self._blocks else None
        if whole is not None:
            self.rows, self._stored, self.active = self._blocks[0].rows, whole, self._blocks[0].active
        else:
            self.rows = torch.cat([before.positions, *(block.entered for block in self._blocks)], dim=2)
            new = [encode_rows(block.k, block.v, before.is_quantised) for block in self._blocks]
            names = before.stored.keys() - {"positions"}
            self._stored = {name: torch.cat([before.rows[name], *(x[name] for x in new)], dim=2) for name in names}
            no_tokens = before.positions.new_empty(len(before.clock), 0, dtype=torch.bool)
            self.active = torch.cat([no_tokens, *(block.active for block in self._blocks)], dim=1)
        S = before.positions.shape[2]  # the rows are copies, because a step in place may overwrite the given ones
        rows: dict[str, Any] = {name: x[:, :, :S] for name, x in self._stored.items()}
        self._before = replace(before, **rows, positions=self.rows[:, :, :S], buffer=None)
        self.scores = self._scores_by_row() if recorder.want_scores else None

    @cached_property
    def left(self) -> Tensor:
        """``(B, K, T)`` int64, the position evicted at each token, −1 for none.

        Raises:
            Error: heads share a budget, so a head may evict several rows at one token; ``last_visible`` has them.
        """
        if isinstance(self._before.reduction, SharedBudget):
            raise Error(f"left: {self._before.reduction} evicts several rows of a head at one token; expected last_visible")
        no_tokens = self.rows.new_empty(*self.rows.shape[:2], 0)
        return torch.cat([no_tokens, *(block.left for block in self._blocks)], dim=2)

    @cached_property
    def last_visible(self) -> Tensor:
        """``(B, 1 or K, S + T)`` int64: the last token that can attend to a row; T if it is retained, −1 if it is empty."""
        found = self._blocks[0].last_visible if len(self._blocks) == 1 else self._last_visible_of_blocks()
        return found.masked_fill(self.rows[:, : found.shape[1]] == EMPTY, -1)

    @property
    def queries(self) -> Tensor:
        """``(B, N, T, D)``, the queries of all tokens; without rotation if H has ``places``."""
        no_tokens = self._stored["keys"].new_empty(len(self.rows), self.rows.shape[1], 0, self._stored["keys"].shape[-1])
        return torch.cat([block.q for block in self._blocks], dim=2) if self._blocks else no_tokens

    @property
    def keys(self) -> Tensor:
        """``(B, K, S + T, D)``, the keys of all ``rows``, evicted ones too; without rotation if H has ``places``."""
        return dequantise_rows(self._stored["keys"], self._stored.get("key_scales"), self.queries.dtype)

    @property
    def no_empty_rows(self) -> bool:
        """True if no row was empty before the first token, and heads hold equally many rows."""
        return self._before.no_empty_rows and not isinstance(self._before.reduction, HeadBudget)

    @property
    def is_gather_only(self) -> bool:
        """True if :meth:`at` only gathers rows and computes nothing again."""
        operator = self._before.reduction
        return (
            bool(self._blocks) and not operator.merges_values and (self._stats_by_token is not None or not operator.stat_names)
        )

    @property
    def _stats_by_token(self) -> dict[str, Tensor] | None:
        return self._blocks[0].stats_by_token if len(self._blocks) == 1 else None

    def at(self, query: PrefixQuery) -> MultiState:
        """Return the state of batch rows ``query.rows`` after their first ``query.n`` tokens."""
        if not self._blocks:
            return self._before.select(query.rows)
        if self._before.reduction.merges_values:
            return self._unroll_again(query)
        if not self.is_gather_only:
            return self._unroll_blocks_again(query)
        grown, uniform = self.rows_before_eviction(query), self.no_empty_rows and query.uniform
        if self._before.reduction.size is None and uniform and len(query.n):
            end = self._before.positions.shape[2] + int(query.n[0])
            return grown.with_rows({name: x[:, :, :end] for name, x in grown.rows.items()}, grown.clock, no_empty_rows=True)
        return grown.keep_rows(query.kept_mask(self.last_visible), uniform=uniform)

    def rows_before_eviction(self, query: PrefixQuery) -> MultiState:
        """Return :meth:`at` with all S + T rows. Statistics are left out where they are not recorded for every token."""
        stored: dict[str, Any] = {**self._stored, "positions": self.rows}
        if not query.all_rows:
            stored = {name: x.index_select(0, query.rows) for name, x in stored.items()}
        history = self._stats_by_token or {}
        row_stats = {name: self._stats_since_start(name, x)[query.rows, query.n] for name, x in history.items()}
        clock = self._before.clock[query.rows] + query.n_read
        return replace(self._before, **stored, clock=clock, row_stats=row_stats, no_empty_rows=False)

    def _unroll_again(self, query: PrefixQuery) -> MultiState:
        """:meth:`at` for an operator that merges values, which are not recorded."""
        n, rows, most = query.n, query.rows, int(query.n.amax())
        parts = zip(*((block.q, block.k, block.v) for block in self._blocks), strict=True)
        q, k, v = (torch.cat(x, dim=2).index_select(0, rows)[:, :, :most] for x in parts)
        x = torch.cat([block.inputs for block in self._blocks], dim=1).index_select(0, rows)[:, :most]
        active = self.active[rows, :most] & (torch.arange(most, device=n.device) < n[:, None])
        return unroll_layer(x, q, k, v, self._before.select(rows), active, rule=self._blocks[0].rule)[1]

    def _unroll_blocks_again(self, query: PrefixQuery) -> MultiState:
        """:meth:`at` from the statistics at the start of the block that contains token n."""
        n, rows, parts, order = query.n, query.rows, list[MultiState](), list[Tensor]()
        starts = torch.tensor([0, *(block.q.shape[2] for block in self._blocks)], device=n.device).cumsum(0)
        containing = (torch.searchsorted(starts, n, right=True) - 1).clamp(max=len(self._blocks) - 1)
        for i in to_list(containing.unique()):
            some, block = (containing == i).nonzero()[:, 0], self._blocks[i]
            begin = PrefixQuery.of(self.active, starts[i].expand_as(some), rows[some])
            mask, uniform = begin.kept_mask(self.last_visible), self.no_empty_rows and begin.uniform
            H = self.rows_before_eviction(begin).keep_rows(mask, uniform=uniform)
            S = H.positions.shape[2]  # of some batch rows, which may need fewer columns than all of them
            stats = {name: x.index_select(0, rows[some])[:, :, :S] for name, x in block.row_stats.items()}
            rest = n[some] - starts[i]
            most = int(rest.amax())
            q, k, v = (x.index_select(0, rows[some])[:, :, :most] for x in (block.q, block.k, block.v))
            inputs = block.inputs.index_select(0, rows[some])[:, :most]
            active = block.active[rows[some], :most] & (torch.arange(most, device=n.device) < rest[:, None])
            parts.append(unroll_layer(inputs, q, k, v, replace(H, row_stats=stats), active, rule=block.rule)[1])
            order.append(some)
        return concat_batches(parts).select(torch.cat(order).argsort())

    def _stats_since_start(self, name: str, after: Tensor) -> Tensor:
        """Return a statistic before the first token and after each, ``(B, T + 1, K, R, …)``."""
        start = self._before.row_stats[name]  # (B, K, S, …)
        start = torch.cat((start, start.new_zeros(*start.shape[:2], after.shape[1], *start.shape[3:])), dim=2)
        return torch.cat((start[:, None], after), dim=1)

    def _last_visible_of_blocks(self) -> Tensor:
        """Return :attr:`last_visible` of several blocks or none, arbitrary for empty rows."""
        (B, K, R), T, start = self.rows.shape, self.active.shape[1], 0
        last_visible = torch.full((B, K, R + 1), T, device=self.rows.device)
        for block in self._blocks:
            evicted = (block.last_visible < block.q.shape[2]) & (block.rows >= 0)
            index = torch.where(evicted, self._row_index(block.rows), R)
            last_visible.scatter_(2, index, (block.last_visible + start).expand_as(index))
            start += block.q.shape[2]
        return last_visible[..., :R]

    def _row_index(self, positions: Tensor) -> Tensor:
        """Return the index in ``rows`` of each of ``positions (B, K, …)``."""
        before, S = self._before, self._before.positions.shape[2]
        sorted_rows = before.positions.masked_fill(before.empty, torch.iinfo(torch.int64).max)
        token = positions - before.clock[:, None, None]
        return torch.where(token < 0, torch.searchsorted(sorted_rows, positions.contiguous()), token + S)

    def _scores_by_row(self) -> Tensor:
        """Return the scores of all blocks, with one column for each of ``rows``."""
        (B, _, R), T, n_learned = self.rows.shape, self.active.shape[1], self._before.n_learned
        blocks = [(block.rows, block.scores) for block in self._blocks if block.scores is not None]
        heads, dtype = (blocks[0][1].shape[1], blocks[0][1].dtype) if blocks else (1, torch.float32)
        scores, start = self._stored["keys"].new_full((B, heads, T, R + 1), torch.nan, dtype=dtype), 0
        for rows, score in blocks:
            index = self._row_index(rows).masked_fill(rows == EMPTY, R)  # (B, K, R of the block)
            index[..., :n_learned] = torch.arange(n_learned, device=index.device)  # learned rows have equal positions
            stop = start + score.shape[2]
            scores[:, :, start:stop].scatter_(3, index[:, :heads, None].expand_as(score), score)
            start = stop
        return scores[..., :R]
