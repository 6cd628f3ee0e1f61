r"""A learned $H_0$: rows that stand in H before the first token is read, and never leave.

- *Persistent rows* (all-attention, arXiv:1907.01470) are keys and values of their own in every layer, for the one softmax over
  them and the text; a layer that has them needs no feed-forward.
- *Memory tokens* (Memory Transformer, arXiv:2006.11527) are vectors read before the text, by the same transitions, with nothing
  reduced; what they leave behind is $H_0$.
- *Recurrent memory* (RMT, arXiv:2207.06881): at the end of a chunk as many write tokens are read, and what leaves the last
  layer there is the memory that the next chunk begins with. The authors read the memory itself a second time; here write tokens
  are learned, so that a state remembers nothing but H.

Learned rows have no place in the text. The clock counts text alone; they are at position −2, and not counted in ``size``
(:mod:`msrnn.state.multistate`). Nothing is added to memory tokens for their position, their queries and keys are not rotated
(as at the place 0), and to ALiBi they are near to every token. Write tokens are rotated, or lean,
as the next ones of the text would be.
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
from ..reductions.core import Full
from ..state.multistate import MultiState
from ..state.position_remapping import ABSOLUTE
from ..state.state import State


class Learned(Cell):
    """A network with ``config.memory_tokens``, ``config.persistent`` rows, or none of either."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        if config.persistent:
            shape = (config.n_layers, config.n_kv_heads, config.persistent, config.head_dim)
            self.persistent_keys, self.persistent_values = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        if config.memory_tokens:
            self.memory = nn.Parameter(torch.empty(config.memory_tokens, config.width))
        if config.recurrent:
            self.write = nn.Parameter(torch.empty(config.memory_tokens, config.width))

    @abstractmethod
    def leave(self, x: Tensor) -> Tensor:
        """``(…, E) -> (…, E)``: what leaves the last layer, as the vocabulary product, and the next chunk, are given it."""

    def initial_state(
        self, batch_size: int = 1, reduction: Reduction | str | Sequence[Reduction | str] | None = None, **how: Any
    ) -> State:
        state = super().initial_state(batch_size, reduction, **how)
        return self._begun(state, self.memory[None] if self.config.memory_tokens else None)

    initial_state.__doc__ = Cell.initial_state.__doc__

    def carry(self, state: State) -> State:
        """The state before the next chunk: its memory is what this one wrote, and of its text nothing else is left; the clock
        is at 0. Gradients flow through it; ``carry(state.detach())`` ends them where the writing begins.

        Raises:
            Error: a cell that is not ``recurrent``; a state of another model.
        """
        if not self.config.recurrent:
            raise Error("carry: this cell writes no memory; expected one whose config is recurrent")
        how = self._like(state)
        B, places = len(state.clock), state.places
        position = state.clock[:, None] + torch.arange(len(self.write), device=state.clock.device)
        rotation = None if places else self.rotation(position, self.write.dtype)
        write = dropout(self.write.expand(B, -1, -1), self.config.dropout, self.training)
        x, _ = self.run_layers(write, rotation, state)
        return self._begun(super().initial_state(**how), self.leave(x))

    def renew(self, state: State) -> State:
        """``state`` with the learned rows that the parameters give now, and their graph: for a state that is carried on after
        the parameters have changed, or that was detached.

        Raises:
            Error: a ``recurrent`` cell, whose state is renewed by :meth:`carry`; a state of another model.
        """
        if self.config.recurrent:
            raise Error("renew: the memory of a recurrent cell is what it wrote; expected carry")
        fresh = self.initial_state(**self._like(state))

        def renewed(H: MultiState, new: MultiState) -> MultiState:
            keys, values = (
                torch.cat((ours, x[:, :, H.n_learned :]), dim=2) for ours, x in ((new.keys, H.keys), (new.values, H.values))
            )
            return replace(H, keys=keys, values=values, buffer=None)

        return state.with_layers(renewed(H, new) for H, new in zip(state, fresh, strict=True))

    def _like(self, state: State) -> dict[str, Any]:
        """What makes an :meth:`initial_state` for the same texts as ``state``, which has to be of this cell."""
        self.check_state(state, len(state.clock) if isinstance(state, State) else 0)
        where = {"device": state.device, "dtype": state.dtype}
        places = state.places.rule if state.places else ABSOLUTE
        return {"batch_size": len(state.clock), "reduction": [H.reduction for H in state], "places": places, **where}

    def _begun(self, state: State, memory: Tensor | None) -> State:
        """``state``, which has no rows, with the learned ones; ``memory (1 or B, m, E)``."""
        rows: list[tuple[Tensor, Tensor]] = []
        if self.config.persistent:
            more = self.kv_dim - self.config.head_dim
            keys, values = (pad(x, (0, more))[:, None] for x in (self.persistent_keys, self.persistent_values))
            rows = list(zip(keys, values, strict=True))  # (1, K, P, D) each
        if memory is not None:
            first = super().initial_state(len(memory), Full(), device=memory.device, dtype=memory.dtype)
            memory = dropout(memory, self.config.dropout, self.training)
            _, layers = self.run_layers(memory, None, _pinned(first, rows))
            rows = [(H.keys, H.values) for H in layers]
        return state.with_layers(_pinned(state, rows))


def _pinned(state: State, rows: list[tuple[Tensor, Tensor]]) -> list[MultiState]:
    """The layers of ``state``, which have no rows, each with a key and a value ``(1 or B, K, P, D)`` of P learned ones."""

    def pinned(H: MultiState, keys: Tensor, values: Tensor) -> MultiState:
        (B, K, _), P = H.positions.shape, keys.shape[2]
        keys, values = (x.to(H.keys).expand(B, -1, -1, -1).contiguous() for x in (keys, values))
        positions = H.positions.new_full((B, K, P), LEARNED)
        row_stats = {name: x.new_zeros(B, K, P, *x.shape[3:]) for name, x in H.row_stats.items()}
        return replace(H, keys=keys, values=values, positions=positions, row_stats=row_stats, n_learned=P)

    return [pinned(H, *of) for H, of in zip(state, rows, strict=True)] if rows else list(state)
