"""The chunk loop of the many-token path, used by ``Cell.forward`` and ``Cell.scan``.

A long text is read in chunks of tokens. This bounds memory and does not change the result, because each chunk starts from the
state after the previous chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..recurrence.records import LayerRecorder
from ..state.multistate import MultiState
from ..state.stacking import concat_batches
from ..state.state import State

CHUNK_TOKENS = 1024
"""Maximum number of tokens in a chunk, summed over the batch rows. More tokens are not faster on a CPU."""


class Chunk(NamedTuple):
    """Some consecutive tokens of the batch rows that have tokens left."""

    rows: Tensor
    """``(B',)`` int64, indices into the batch."""
    start: int
    stop: int
    active: Tensor
    """``(B', stop − start)`` bool: True for tokens, False for padding."""
    x: Tensor
    """``(B', stop − start, E)``, the output of the last layer."""


class ChunkReader:
    """An iterable over the chunks of a padded batch, to be used once; then :meth:`final_state` returns the state.

    Without ``recorders``, finished batch rows are removed, so that no time is spent on padding. ``recorders`` need the whole
    batch, so finished batch rows are masked instead. ``unroll`` is :meth:`Cell.unroll`.
    """

    def __init__(
        self,
        unroll: Callable[..., tuple[Tensor, list[MultiState]]],
        tokens: Tensor,
        lengths: Tensor,
        state: State,
        recorders: Sequence[LayerRecorder] | None = None,
    ):
        self._unroll, self._tokens, self._lengths, self._recorders = unroll, tokens, lengths, recorders
        self._input_state, self._state = state, state
        self._rows = torch.arange(len(tokens), device=tokens.device)
        self._finished: list[tuple[Tensor, State]] = []

    def __iter__(self) -> Iterator[Chunk]:
        start, end = 0, int(self._lengths.amax()) if len(self._lengths) else 0
        if self._recorders is not None:
            end = self._tokens.shape[1]
        while start < end:
            if self._recorders is None:
                self._remove_finished(start)
            yield (chunk := self._read(start, end))
            start = chunk.stop

    def _read(self, start: int, end: int) -> Chunk:
        rows, lengths = self._rows, self._lengths[self._rows]
        stop = min(start + max(1, CHUNK_TOKENS // max(1, len(rows))), end)
        active = torch.arange(start, stop, device=rows.device) < lengths[:, None]  # (B', t)
        x, layers = self._unroll(
            self._tokens[rows, start:stop],
            self._state.sorted_by_position(),
            None if not len(rows) or stop <= int(lengths.amin()) else active,
            self._recorders,
            donate=self._recorders is None and self._state is not self._input_state,
            make_state=self._recorders is None or stop < end,
        )
        self._state = self._state.with_layers(layers)
        return Chunk(rows, start, stop, active, x)

    def _remove_finished(self, start: int) -> None:
        finished = self._lengths[self._rows] <= start
        if bool(finished.any()):
            self._finished.append((self._rows[finished], self._state.select(finished.nonzero()[:, 0])))
            self._rows, self._state = self._rows[~finished], self._state.select((~finished).nonzero()[:, 0])

    def final_state(self) -> State:
        """Return the state after the last chunk, with the batch in its order. It shares no storage with the input."""
        if not self._finished:
            return self._state.clone() if self._state is self._input_state else self._state
        parts = [*self._finished, (self._rows, self._state)]
        original_order = torch.cat([rows for rows, _ in parts]).argsort()
        layers = [concat_batches(layer) for layer in zip(*(state for _, state in parts), strict=True)]
        return self._state.with_layers(layers).select(original_order)
