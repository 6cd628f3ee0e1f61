"""What happened inside a fold: who left at each token, and the state after any of them, without reading parameters again."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import Error
from ..reductions.contract import EMPTY
from ..state.multistate import MultiState
from ..state.stacking import can_stack, concat_batches, stack_and_keep
from ..state.state import State
from .unroll import Events, fold

LAST = torch.iinfo(torch.int64).max


class Cut(NamedTuple):
    """Which state is asked of a trace, and what is the same in all layers."""

    n: Tensor
    """``(B',)`` int64, tokens, of those before which a row's text may have ended."""
    rows: Tensor
    """``(B',)`` int64, rows of the batch."""
    every: bool
    """Whether these are all, in order."""
    read: Tensor
    """``(B',)`` int64, how many of the n tokens are read."""
    level: bool
    """Whether all of them are, and all rows have as many."""
    T: int
    """Tokens of the trace."""

    @classmethod
    def of(cls, active: Tensor, n: Tensor, rows: Tensor) -> "Cut":
        """Of tokens of which those where ``active (B, T)`` are read."""
        B, T = active.shape
        read = (active[rows] & (torch.arange(T, device=n.device) < n[:, None])).sum(1)
        level = bool((n == n[:1]).all() and (read == n).all())
        return cls(n, rows, rows.equal(torch.arange(B, device=rows.device)), read, level, T)

    def stay(self, until: Tensor) -> Tensor:
        """``(…, B, 1 or K, S + T)``, the last token to see each row -> ``(…, B', 1 or K, S + T)`` bool: which are there."""
        came, n = torch.arange(self.T - until.shape[-1], self.T, device=until.device), self.n[:, None, None]
        return ((until if self.every else until.index_select(-3, self.rows)) >= n) & (came < n)


class LayerTrace:
    """One layer's part of a :class:`Trace`: T tokens read from a state of S rows.

    Attributes:
        left: ``(B, K, T)`` int64, the position that left at each token, −1 none.
        rows: ``(B, K, S + T)`` int64, the positions of all rows there were: those of the state before, in order of position,
            then the tokens'; −1 where there is none.
        scores: ``(B, 1 or K, T, S + T)``, the operator's score of each of ``rows`` as each token had seen it, NaN where it had
            not; None unless asked for.
        active: ``(B, T)`` bool, whether a token was read.
    """

    def __init__(self, H: MultiState, events: Events):
        self._before, self._events = H.sorted_by_position(), events
        if events and events[0].held is not None:
            self.rows, (self._keys, self._values), self.active = events[0].rows, events[0].held, events[0].active
        else:
            self.rows = torch.cat([self._before.positions, *(e.entered for e in events)], dim=2)
            self._keys = torch.cat([self._before.keys, *(e.k for e in events)], dim=2)
            self._values = torch.cat([self._before.values, *(e.v for e in events)], dim=2)
            nothing = H.positions.new_empty(*H.positions.shape[:2], 0)
            self.active = torch.cat([nothing[:, 0].bool(), *(e.active for e in events)], dim=1)  # (B, T)
        S = self._before.positions.shape[2]  # what a step in place may write over later is not looked at again
        self._before = replace(
            self._before, keys=self._keys[:, :, :S], values=self._values[:, :, :S], positions=self.rows[:, :, :S], buffer=None
        )
        self.scores = self._scattered() if events.scores else None

    @cached_property
    def left(self) -> Tensor:
        nothing = self.rows.new_empty(*self.rows.shape[:2], 0)
        return torch.cat([nothing, *(e.left for e in self._events)], dim=2)

    @property
    def shape(self) -> torch.Size:
        """``(B, T)``."""
        return self.active.shape

    def at(self, cut: Cut) -> MultiState:
        """H of the batch rows ``cut.rows (B',)`` after their first ``cut.n (B',)`` tokens."""
        operator, n, rows = self._before.reduction, cut.n, cut.rows
        if not self._events:
            return self._before.select(rows)
        if operator.merges_values:  # values have changed on the way; all of it is read again
            most, S = int(n.amax()), self._before.positions.shape[2]
            q = torch.cat([e.q for e in self._events], dim=2).index_select(0, rows)[:, :, :most]
            k, v = (x.index_select(0, rows)[:, :, S : S + most] for x in (self._keys, self._values))
            active = self.active[rows, :most] & (torch.arange(most, device=n.device) < n[:, None])
            return fold(q, k, v, self._before.select(rows), active)[1]
        if self.simple:
            every, even = self.every(cut), self.no_empty_rows and cut.level
            if operator.size is None and even and len(n):  # nothing left
                end = self._before.positions.shape[2] + int(n[0])
                first = {name: x[:, :, :end] for name, x in every.rows.items()}
                return every.with_rows(first, every.clock, no_empty_rows=True)
            return every.keep_rows(cut.stay(self.until), uniform=even)
        # numbers are kept at the beginning of each block; from there on the block's own part is read again
        starts = torch.tensor([0, *(e.q.shape[2] for e in self._events)], device=n.device).cumsum(0)
        blocks = (torch.searchsorted(starts, n, right=True) - 1).clamp(max=len(self._events) - 1)
        parts, order = [], []
        for i in blocks.unique().tolist():
            some, e = (blocks == i).nonzero()[:, 0], self._events[i]
            begin = Cut.of(self.active, starts[i].expand_as(some), rows[some])
            H = self.every(begin).keep_rows(begin.stay(self.until), uniform=self.no_empty_rows and begin.level)
            S = H.positions.shape[2]  # of some rows, no more columns than the fullest of them needs
            H = replace(H, row_stats={name: x.index_select(0, rows[some])[:, :, :S] for name, x in e.row_stats.items()})
            more = n[some] - starts[i]
            most = int(more.amax())
            q, k, v = (x.index_select(0, rows[some])[:, :, :most] for x in (e.q, e.k, e.v))
            active = e.active[rows[some], :most] & (torch.arange(most, device=n.device) < more[:, None])
            parts.append(fold(q, k, v, H, active)[1])
            order.append(some)
        back = torch.cat(order).argsort()
        return concat_batches(parts).select(back)

    def _since(self, name: str, after: Tensor) -> Tensor:
        """``(B, T + 1, K, R, …)``: one of the operator's numbers before the first token, and after each."""
        start = self._before.row_stats[name]  # (B, K, S, …)
        start = torch.cat((start, start.new_zeros(*start.shape[:2], after.shape[1], *start.shape[3:])), dim=2)
        return torch.cat((start[:, None], after), dim=1)

    @property
    def simple(self) -> bool:
        """Whether all that :meth:`at` needs is at hand, and has only to be picked."""
        operator, after = self._before.reduction, self._events[0].after if len(self._events) == 1 else None
        return bool(self._events) and not operator.merges_values and (after is not None or not operator.stat_names)

    @property
    def no_empty_rows(self) -> bool:
        """Whether no row was empty before the first token."""
        return self._before.no_empty_rows

    def every(self, cut: Cut) -> MultiState:
        """:meth:`at` before any row has gone; without the operator's numbers, where they are not at hand."""
        before, after = self._before, self._events[0].after if len(self._events) == 1 else None
        rows = (self._keys, self._values, self.rows)
        keys, values, positions = rows if cut.every else (x.index_select(0, cut.rows) for x in rows)
        row_stats = {name: self._since(name, x)[cut.rows, cut.n] for name, x in (after or {}).items()}
        clock = before.clock[cut.rows] + cut.read
        return replace(
            before, keys=keys, values=values, positions=positions, clock=clock, row_stats=row_stats, no_empty_rows=False
        )

    @cached_property
    def until(self) -> Tensor:
        """``(B, 1 or K, S + T)`` int64: the last token that saw each row; T where it stays, −1 where it is empty."""
        if len(self._events) == 1:
            return self._events[0].until
        (B, K, R), T = self.rows.shape, self.active.shape[1]
        index = self._row_of(self.left).masked_fill(self.left == EMPTY, R)
        until = torch.full((B, K, R + 1), T, device=index.device)
        time = torch.arange(T, device=index.device).expand(B, K, T)
        return until.scatter_(2, index, time)[..., :R]

    def _row_of(self, positions: Tensor) -> Tensor:
        """Where in ``rows`` each of ``positions (B, K, …)`` stands."""
        before, S = self._before, self._before.positions.shape[2]
        carried = torch.searchsorted(before.positions.masked_fill(before.empty, LAST), positions.contiguous())
        token = positions - before.clock[:, None, None]
        return torch.where(token < 0, carried, token + S)

    def _scattered(self) -> Tensor:
        """The scores of all blocks, each column in its place among ``rows``."""
        (B, _, R), T = self.rows.shape, self.shape[1]
        blocks = [(e.rows, e.score) for e in self._events if e.score is not None]
        heads, dtype = (blocks[0][1].shape[1], blocks[0][1].dtype) if blocks else (1, self._keys.dtype)
        scores = self._keys.new_full((B, heads, T, R + 1), torch.nan, dtype=dtype)
        start = 0
        for rows, score in blocks:
            index = self._row_of(rows).masked_fill(rows == EMPTY, R)  # (B, K, R of the block)
            index[..., : self._before.n_learned] = torch.arange(
                self._before.n_learned, device=index.device
            )  # no position tells them apart
            index = index[:, :heads]
            stop = start + score.shape[2]
            scores[:, :, start:stop].scatter_(3, index[:, :, None].expand_as(score), score)
            start = stop
        return scores[..., :R]


class Trace:
    """What ``cell.scan`` saw: ``trace[l]`` is layer l's :class:`LayerTrace`, ``trace.at(n)`` the state after n tokens.

    It holds the keys and values of the state before and of all T tokens once, and shares no storage that a step in place
    writes to.
    """

    def __init__(self, state: State, events: Sequence[Events]):
        self._state = state
        self._layers = [LayerTrace(H, e) for H, e in zip(state, events, strict=True)]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerTrace]:
        return iter(self._layers)

    def __getitem__(self, layer: int) -> LayerTrace:
        return self._layers[layer]

    def at(self, n: int | Tensor, rows: Tensor | None = None) -> State:
        """The state after the first n tokens: as reading these alone would have left it.

        Args:
            n: how many, 0 … T; or one number for each row of the batch, ``(B,)`` int64. A row that has fewer stands at its end.
            rows: of these rows of the batch only, ``(B',)`` int64, and n is ``(B',)``; None is all.

        Raises:
            Error: n is neither, or outside 0 … T; rows outside the batch.
        """
        B, T = self[0].shape
        if rows is None:
            rows = torch.arange(B, device=self._state.clock.device)
        elif not (isinstance(rows, Tensor) and rows.ndim == 1 and rows.dtype == torch.int64 and _within(rows, B - 1)):
            raise Error(f"at: rows are {rows!r:.60}; expected int64 of shape (B',), rows of a batch of {B}")
        B = len(rows)
        whole = isinstance(n, int) and not isinstance(n, bool)
        if not whole and not (isinstance(n, Tensor) and n.shape == (B,) and n.dtype == torch.int64):
            raise Error(f"at: n is {n!r:.60}; expected a whole number, or int64 of shape ({B},)")
        count = torch.as_tensor(n, device=self._state.clock.device).repeat(1 if isinstance(n, Tensor) else B)
        if not _within(count, T):
            raise Error(f"at: n is {count.tolist() if B > 1 else int(count[0])}; expected 0 to {T}, the tokens read")
        cut = Cut.of(self[0].active, count, rows)
        if B and cut.level and all(layer.simple and layer.no_empty_rows for layer in self):
            layers = [layer.every(cut) for layer in self]
            if can_stack(layers) and not any(x.requires_grad for H in layers for x in H.rows.values()):
                until = torch.stack([layer.until for layer in self])
                return self._state.from_stacked(stack_and_keep(layers, cut.stay(until)))
        layers = [layer.at(cut) for layer in self]
        return self._state.with_layers(replace(H, clock=layers[0].clock) for H in layers)


def _within(x: Tensor, most: int) -> bool:
    return bool(((x >= 0) & (x <= most)).all())
