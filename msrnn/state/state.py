"""The state of a cell: the KV caches of all layers, as one value that the caller owns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..distributed.heads import RankHeads
from ..errors import Error, check_device
from .batching import batch_index, cat_recent_tokens, difference
from .evicted import evicted_positions
from .fingerprint import Fingerprint
from .head_groups import StackedLayers
from .jagged_rows import jagged_if_uneven, padded
from .multistate import MultiState
from .position_remapping import PositionRemapping
from .quantised_rows import parse_row_dtype
from .serialization import write_layers
from .stacking import concat_batches
from .summary import nbytes, summarize


class State:
    """One :class:`MultiState` per layer. ``len``, iteration and indexing give the layers. A layer in which heads hold different
    numbers of rows is stored without empty rows (:mod:`.jagged_rows`), and each access gives a copy of it.

    ``step`` never modifies its input, so an earlier state can be kept for undo or branches. ``step_`` modifies its input.

    Attributes:
        fingerprint: identifies the model that the state belongs to.
        recent_tokens: ``(B, n)`` int64, the newest tokens that a decoding function with ``eos_token_id`` or ``stop`` generated,
            -1 in front of fewer than n; None if the state was last changed in another way. A continuation needs them, to see
            which rows have ended.
    """

    def __init__(self, layers: Iterable[MultiState], fingerprint: Fingerprint, recent_tokens: Tensor | None = None):
        self._layers: tuple[MultiState, ...] | None = tuple(map(jagged_if_uneven, layers))
        self._stacked: StackedLayers | None = None  # replaces ``_layers`` after a stacked step
        self._n_layers = len(self._layers)
        self.fingerprint, self.recent_tokens = fingerprint, recent_tokens

    # The two representations.

    def _unstack(self) -> tuple[MultiState, ...]:
        if self._layers is None:
            if self._stacked is None:
                raise Error("state was being overwritten when step_ was interrupted; expected an earlier state, or a new one")
            if not self._stacked.is_view:
                return self._stacked.unstack(self._n_layers)
            self._layers = self._stacked.unstack(self._n_layers)
        return self._layers

    @property
    def _held(self) -> tuple[MultiState, ...]:
        """The objects that hold the tensors: the stacked layers, or each layer."""
        return self._unstack() if self._stacked is None else self._stacked.parts

    def _with_held(self, held: Iterable[MultiState], change: Callable[[Tensor], Tensor]) -> "State":
        state = self.with_layers(held) if self._stacked is None else self.from_stacked(self._stacked.with_parts(held))
        return state._with_recent_tokens(self, change)

    def _with_recent_tokens(self, other: "State", change: Callable[[Tensor], Tensor]) -> "State":
        """Set ``recent_tokens`` to the changed ones of ``other``, and return self."""
        self.recent_tokens = None if other.recent_tokens is None else change(other.recent_tokens)
        return self

    def stacked(self) -> tuple[StackedLayers | None, bool]:
        """Return all layers in one, or None if they cannot be stacked; and True for a copy."""
        return (StackedLayers.copy_of(self._unstack()), True) if self._stacked is None else (self._stacked, False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: the layers in one of their two representations."""
        return {**vars(self), "_layers": self._unstack() if self._stacked is None else None}

    def from_stacked(self, stacked: StackedLayers) -> "State":
        """Return a state of the same cell from all layers in one."""
        state = State((), self.fingerprint)
        state._layers, state._stacked, state._n_layers = None, stacked, self._n_layers
        return state

    def with_layers(self, layers: Iterable[MultiState]) -> "State":
        """Return a state of the same cell with other layers."""
        return State(layers, self.fingerprint)

    def __len__(self) -> int:
        return self._n_layers

    def __iter__(self) -> Iterator[MultiState]:
        return map(padded, self._unstack())

    def __getitem__(self, layer: int) -> MultiState:
        return padded(self._unstack()[layer])

    @property
    def clock(self) -> Tensor:
        """``(B,)`` int64, number of tokens read."""
        return self._held[0].clock

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of keys and values; int8 for 8-bit rows."""
        return self._held[0].keys.dtype

    @property
    def device(self) -> torch.device:
        return self._held[0].keys.device

    @property
    def places(self) -> PositionRemapping | None:
        """The position remapping at attention time; None: absolute positions."""
        return self._held[0].places

    @property
    def heads(self) -> RankHeads | None:
        """The heads of this state, in a cell that is split over several processes; None: all heads of the model."""
        return self._held[0].heads

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, their scales, positions, statistics of the operators, clock, and preallocated rows."""
        return nbytes(self._held)

    @property
    def requires_grad(self) -> bool:
        """True if gradients can flow back into this state."""
        return any(x.requires_grad for H in self._held for x in H.rows.values())

    def evicted_since(self, before: "State") -> list[Tensor]:
        """Return the positions that were evicted since ``before``, an earlier state of the same sequences.

        Returns:
            Per layer ``(B, K, M)`` int64: ascending positions, then −1 where a head has fewer than M. Tokens that were read
            since ``before`` are included.

        Raises:
            Error: ``before`` is no earlier state of the same sequences.
        """
        return evicted_positions(list(before), list(self))

    def sorted_by_position(self) -> "State":
        """Return the same rows in order of position; at once for stacked layers."""
        return self if self._stacked is None else self.from_stacked(self._stacked.sorted_by_position())

    def assign_(self, other: "State", writes: Iterable[Callable[[], object]] = ()) -> "State":
        """Do ``writes``, replace all tensors by those of ``other``, and return self. No other method modifies a state."""
        self._layers = self._stacked = None  # refused, if an interrupt leaves it half overwritten
        for write in writes:
            write()
        self.recent_tokens = other.recent_tokens
        self._stacked, self._layers = other._stacked, other._layers
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> "State":
        """Return a state with ``change`` applied to every tensor of every layer. All layers share one clock."""
        clock = change(self.clock)
        return self.with_layers(replace(H.map(change), clock=clock) for H in self)._with_recent_tokens(self, change)

    def _map_elementwise(self, change: Callable[[Tensor], Tensor]) -> "State":
        """As :meth:`map`, at once for stacked layers."""
        clock = change(self.clock)
        return self._with_held((replace(H.map(change), clock=clock) for H in self._held), change)

    def clone(self) -> "State":
        """Return a copy that shares no storage with this state."""
        return self._map_elementwise(torch.clone)

    __copy__ = clone  # two states on one storage would overwrite each other

    def detach(self) -> "State":
        """Return the same numbers without their graph. Storage is shared, as with ``Tensor.detach``."""
        return self._map_elementwise(torch.Tensor.detach)

    def to(self, *args, **kwargs) -> "State":
        """Return a copy on another device or with keys and values in another dtype; arguments as of ``Tensor.to``.

        ``dtype=torch.int8`` quantises the rows of a floating-point state, and a floating-point dtype turns 8-bit rows into
        numbers. Statistics of operators stay in at least float32. The copy shares no storage.

        Raises:
            Error: a device that is not available, or another dtype.
        """
        args = tuple(torch.int8 if isinstance(x, str) and x == "int8" else x for x in args)
        kwargs = {name: torch.int8 if isinstance(x, str) and x == "int8" else x for name, x in kwargs.items()}
        try:
            device, wanted, *_ = torch._C._nn._parse_to(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Error(f"to: {str(error).splitlines()[0]}") from None
        check_device(device)
        dtype, clock = parse_row_dtype(wanted), self.clock.to(device=device, copy=True)
        layers = self.with_layers(H.to(device, dtype, clock) for H in self)
        return layers._with_recent_tokens(self, lambda x: x.to(device=device, copy=True))

    def select(self, rows: Tensor | Sequence[int] | slice) -> "State":
        """Return a copy with the batch rows ``rows``: picked, repeated or reordered. Columns that are empty in all of them stay
        until many tokens are read, because dropping them would synchronise with the device.

        Args:
            rows: int64 indices ``(B',)`` as a tensor or a list, or a slice. Negative indices count from the end.

        Raises:
            Error: ``rows`` is of another type or shape, or out of bounds (checked on the CPU only).
        """
        index = picked = batch_index(rows, self.clock)
        clock = self.clock.index_select(0, index)
        if self._stacked is not None:  # the same rows in the batch of each layer
            index = (torch.arange(self._n_layers, device=index.device)[:, None] * len(self.clock) + index).flatten()
        held = (
            H.with_rows({name: x.index_select(0, index) for name, x in H.rows.items()}, clock, no_empty_rows=H.no_empty_rows)
            for H in self._held
        )
        return self._with_held(held, lambda x: x.index_select(0, picked))

    @staticmethod
    def cat(states: "Sequence[State]") -> "State":
        """Return the batches of several states as one batch, in this order; :meth:`select` takes it apart again.

        The states may have read different numbers of tokens. Shorter ones are padded with empty rows. No storage is shared.

        Raises:
            Error: no states, or states of different models, operators, ``places``, dtypes or devices.
        """
        if not isinstance(states, Sequence) or not states or not all(isinstance(state, State) for state in states):
            raise Error(f"cat: states are {states!r:.60}; expected a list of at least one State")
        first = states[0]
        for i, state in enumerate(states):
            if found := difference(state, first):
                raise Error(f"cat: state {i} {found}; expected states that differ only in what they have read")
        clock = torch.cat([state.clock for state in states])
        layers = [replace(concat_batches(parts), clock=clock) for parts in zip(*states, strict=True)]
        return State(layers, first.fingerprint, cat_recent_tokens(states))

    def save(self, path: str | Path, *, logits: Tensor | None = None, metadata: Mapping[str, str] | None = None) -> None:
        """Write the state to one safetensors file, with its operators and their statistics; ``msrnn.load_state`` reads it.

        Args:
            logits: the logits ``(B, V)`` of the next token, so that decoding can continue in another process.
            metadata: further strings by name, to be stored in the metadata of the file.

        Raises:
            Error: logits of another shape, the settings of an operator cannot be saved, or a path that cannot be written to.
        """
        more = {"logits": logits, "recent_tokens": self.recent_tokens}
        write_layers(self._unstack(), self.fingerprint, path, metadata, {k: x for k, x in more.items() if x is not None})

    def __repr__(self) -> str:
        return summarize(list(self), self.nbytes)
