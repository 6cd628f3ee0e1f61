r"""A learned $H_0$: rows that H contains before the first token, and that are never evicted.

- *Persistent rows* (all-attention, arXiv:1907.01470) are learned keys and values in every layer. One softmax covers them and
  the text. A layer with persistent rows needs no MLP.
- *Memory tokens* (Memory Transformer, arXiv:2006.11527) are learned vectors that are read before the text, without
  eviction. Their rows are $H_0$.
- *Recurrent memory* (RMT, arXiv:2207.06881): as many write tokens are read at the end of a segment. The output of the last
  layer at the write tokens is the memory of the next segment. The paper reads the memory itself a second time. Here write
  tokens are learned, so that a state contains only H.

Learned rows have no position in the text: the clock counts text tokens only, learned rows have position −2, and ``size`` does
not count them (:mod:`msrnn.state.multistate`). Memory tokens have no position embedding, no rotation and a zero ALiBi bias.
Write tokens use the positions that follow the text.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, pad

from ..cell.cell import Cell
from ..errors import Error
from ..reductions.contract import LEARNED, Reduction
from ..reductions.tova_paper import Full
from ..state.multistate import MultiState
from ..state.position_remapping import ABSOLUTE
from ..state.quantised_rows import encode_rows
from ..state.state import State


class LearnedRowsNetwork(Cell):
    """A network with ``config.memory_tokens`` memory tokens and ``config.persistent`` persistent rows; 0 is allowed."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        if config.persistent:
            shape = (config.n_layers, config.n_kv_heads, config.persistent, config.head_dim)
            self.persistent_keys, self.persistent_values = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        if config.memory_tokens:
            self.memory = nn.Parameter(torch.empty(config.memory_tokens, config.width))
        if config.recurrent:
            self.write_tokens = nn.Parameter(torch.empty(config.memory_tokens, config.width))

    @abstractmethod
    def final_norm(self, x: Tensor) -> Tensor:
        """Return the input of the output projection, and of the next segment, from the output of the last layer."""

    def initial_state(
        self, batch_size: int = 1, reduction: Reduction | str | Sequence[Reduction | str] | None = None, **options: Any
    ) -> State:
        state = super().initial_state(batch_size, reduction, **options)
        return self._with_learned_rows(state, self.memory[None] if self.config.memory_tokens else None)

    initial_state.__doc__ = Cell.initial_state.__doc__

    def next_segment(self, state: State) -> State:
        """Return the state before the next segment: the new memory, no rows of text, the clock at 0.

        Gradients flow through the memory. ``next_segment(state.detach())`` stops them at the write tokens.

        Raises:
            Error: the cell is not ``recurrent``, or the state belongs to another model.
        """
        if not self.config.recurrent:
            raise Error("next_segment: config.recurrent is False; expected a recurrent cell")
        options = self._arguments_of(state)
        B, places = len(state.clock), state.places
        position = state.clock[:, None] + torch.arange(len(self.write_tokens), device=state.clock.device)
        position_tensors = self.prepare_positions(None if places else position, self.write_tokens.dtype)
        write_tokens = dropout(self.write_tokens.expand(B, -1, -1), self.config.dropout, self.training)
        x, _ = self.run_layers(write_tokens, position_tensors, state)
        return self._with_learned_rows(super().initial_state(**options), self.final_norm(x))

    def refresh_learned_rows(self, state: State) -> State:
        """Return ``state`` with learned rows from the current parameters, with their graph.

        It is required before a state is used after an optimizer step or after ``detach``.

        Raises:
            Error: the cell is ``recurrent`` (use :meth:`next_segment`), or the state belongs to another model.
        """
        if self.config.recurrent:
            raise Error("refresh_learned_rows: the cell is recurrent, its memory is computed; expected a call of next_segment")
        fresh = self.initial_state(**self._arguments_of(state))

        def refreshed(H: MultiState, new: MultiState) -> MultiState:
            stored: dict[str, Any] = {
                name: torch.cat((new.stored[name], x[:, :, H.n_learned :]), dim=2) for name, x in H.stored.items()
            }
            return replace(H, **{**stored, "positions": H.positions}, buffer=None)

        return state.with_layers(refreshed(H, new) for H, new in zip(state, fresh, strict=True))

    def _arguments_of(self, state: State) -> dict[str, Any]:
        """Return the arguments of :meth:`initial_state` that ``state`` started from; refuse a state of another model."""
        self.check_state(state, len(state.clock) if isinstance(state, State) else 0)
        where = {"device": state.device, "dtype": state.dtype}
        places = state.places.rule if state.places else ABSOLUTE
        return {"batch_size": len(state.clock), "reduction": [H.reduction for H in state], "places": places, **where}

    def _with_learned_rows(self, state: State, memory: Tensor | None) -> State:
        """Return ``state``, which has no rows, with the learned rows; ``memory (1 or B, m, E)``."""
        rows: list[tuple[Tensor, Tensor]] = []
        if self.config.persistent:
            keys, values = (
                pad(x, (0, self.position_encodings[0].extra_dims))[:, None]
                for x in (self.persistent_keys, self.persistent_values)
            )
            rows = list(zip(keys, values, strict=True))  # (1, K, P, D) each
        if memory is not None:
            first = super().initial_state(len(memory), Full(), device=memory.device, dtype=memory.dtype)
            memory = dropout(memory, self.config.dropout, self.training)
            _, layers = self.run_layers(memory, self.prepare_positions(None, memory.dtype), prepend_learned_rows(first, rows))
            rows = [(H.keys, H.values) for H in layers]
        return state.with_layers(prepend_learned_rows(state, rows))


def prepend_learned_rows(state: State, rows: list[tuple[Tensor, Tensor]]) -> list[MultiState]:
    """Return the layers of ``state``, which have no rows, with P learned rows each: ``(1 or B, K, P, D)`` keys and values."""

    def prepended(H: MultiState, keys: Tensor, values: Tensor) -> MultiState:
        (B, K, _), P = H.positions.shape, keys.shape[2]
        new = encode_rows(keys, values, H.is_quantised)
        stored: dict[str, Any] = {name: x.to(H.rows[name]).expand(B, *x.shape[1:]).contiguous() for name, x in new.items()}
        positions = H.positions.new_full((B, K, P), LEARNED)
        row_stats = {name: x.new_zeros(B, K, P, *x.shape[3:]) for name, x in H.row_stats.items()}
        return replace(H, **stored, positions=positions, row_stats=row_stats, n_learned=P)

    return [prepended(H, *learned) for H, learned in zip(state, rows, strict=True)] if rows else list(state)
