"""The trace of ``cell.scan``: evicted positions and scores of every layer, and the state after any number of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import Error, is_int
from ..layers.differentiation import is_differentiated
from ..state.head_groups import StackedLayers
from ..state.stacking import can_stack, stack_and_keep
from ..state.state import State
from .layer_trace import LayerTrace, PrefixQuery
from .records import LayerRecorder


class Trace:
    """The trace of all layers: ``trace[l]`` is the :class:`LayerTrace` of layer l, ``trace.at(n)`` the state after n tokens.

    It holds the keys and values of the state before and of all T tokens once. It shares no storage that a step in place
    overwrites.
    """

    def __init__(self, state: State, recorders: Sequence[LayerRecorder]):
        self._state = state
        self._layers = [LayerTrace(H, recorder) for H, recorder in zip(state, recorders, strict=True)]

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[LayerTrace]:
        return iter(self._layers)

    def __getitem__(self, layer: int) -> LayerTrace:
        return self._layers[layer]

    def at(self, n: int | Tensor, rows: Tensor | None = None) -> State:
        """Return the state after the first n tokens, the same as after reading only these. Parameters are not read again.

        Args:
            n: number of tokens, 0 to T; or one number for each batch row, ``(B,)`` int64. A row that has fewer tokens is
                returned at its end.
            rows: ``(B',)`` int64, batch rows to return; then n may be ``(B',)``. None: all.

        Raises:
            Error: ``n`` or ``rows`` has another type or shape or is out of range.
        """
        query = self._query(n, rows)
        if not len(query.n):
            return self._state.select([])
        if (stacked := self._stacked_at(query)) is not None:
            return stacked
        layers = [layer.at(query) for layer in self]
        return self._state.with_layers(replace(H, clock=layers[0].clock) for H in layers)

    def _query(self, n: int | Tensor, rows: Tensor | None) -> PrefixQuery:
        """Return the arguments of :meth:`at`, checked, with one number of tokens for each batch row to return."""
        (B, T), device = self[0].active.shape, self._state.clock.device
        if rows is None:
            rows = torch.arange(B, device=device)
        elif not (isinstance(rows, Tensor) and rows.ndim == 1 and rows.dtype == torch.int64 and _within(rows, B - 1)):
            raise Error(f"at: rows are {rows!r:.60}; expected int64 of shape (B',), rows of a batch of {B}")
        n_rows = len(rows)
        if isinstance(n, Tensor) and n.shape == (n_rows,) and n.dtype == torch.int64:
            counts = n.to(device)
        elif is_int(n):
            counts = torch.as_tensor(n, device=device).repeat(n_rows)
        else:
            raise Error(f"at: n is {n!r:.60}; expected an int, or int64 of shape ({n_rows},)")
        if not _within(counts, T):
            raise Error(f"at: n is {counts.tolist() if n_rows > 1 else int(counts[0])}; expected 0 to {T}, the tokens read")
        return PrefixQuery.of(self[0].active, counts, rows)

    def _stacked_at(self, query: PrefixQuery) -> State | None:
        """Return :meth:`at` by one gather for all layers; None if their rows cannot be stacked or carry a graph."""
        if not query.uniform or not all(layer.is_gather_only and layer.no_empty_rows for layer in self):
            return None
        grown = [layer.rows_before_eviction(query) for layer in self]
        if not can_stack(grown) or is_differentiated(*(x for H in grown for x in H.rows.values())):
            return None
        last_visible = torch.stack([layer.last_visible for layer in self])
        return self._state.from_stacked(StackedLayers((stack_and_keep(grown, query.kept_mask(last_visible)),)))


def _within(x: Tensor, most: int) -> bool:
    return bool(((x >= 0) & (x <= most)).all())
