"""The multi-state: what a decoder-only transformer remembers, layer by layer, as a value the caller owns."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import Error, check_device, check_dtype
from .multistate import MultiState, stack

if TYPE_CHECKING:
    from .fingerprint import Fingerprint
    from .position_remapping import Places


class State:
    """One :class:`MultiState` per layer: all that a cell remembers.

    ``len``, iteration and indexing give the layers. A step never edits the state it is given (``step_`` does, and says
    so), so keeping a variable is undo, and using it twice is a branch.
    """

    def __init__(self, layers: Iterable[MultiState], fingerprint: "Fingerprint"):
        self._layers: tuple[MultiState, ...] | None = tuple(layers)
        self._whole: MultiState | None = None  # all layers as one; the layers are cut out of it when asked for
        self._n = len(self._layers)
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Iterator[MultiState]:
        return iter(self._cut())

    def __getitem__(self, layer: int) -> MultiState:
        return self._cut()[layer]

    def _cut(self) -> tuple[MultiState, ...]:
        if self._layers is None:
            assert self._whole is not None
            self._layers = self._whole.unstacked(self._n)
        return self._layers

    def whole(self) -> tuple[MultiState | None, bool]:
        """All layers as one H, their batches one behind the other (see :func:`stack`), or None where they differ; and whether
        that is a copy."""
        return (stack(self._cut()), True) if self._whole is None else (self._whole, False)

    def with_whole(self, whole: MultiState) -> "State":
        """The same cell's state, all of its layers as one."""
        state = State((), self.fingerprint)
        state._layers, state._whole, state._n = None, whole, self._n
        return state

    @property
    def clock(self) -> Tensor:
        """``(B,)`` int64, tokens read."""
        return self[0].clock if self._whole is None else self._whole.clock

    @property
    def mark(self) -> Tensor:
        """A tensor that has the dtype and the device of all keys and values."""
        return self[0].keys if self._whole is None else self._whole.keys

    @property
    def places(self) -> "Places | None":
        """Where rows stand when they are read; None is at their positions."""
        return self[0].places if self._whole is None else self._whole.places

    @property
    def nbytes(self) -> int:
        """Bytes really held: keys, values, positions, the operators' numbers, the clock, and room for the next rows."""
        return _nbytes(self if self._whole is None else [self._whole])

    @property
    def carries_graph(self) -> bool:
        """Whether a gradient could flow back into this state."""
        return any(x.requires_grad for H in (self if self._whole is None else [self._whole]) for x in H.rows.values())

    def ordered(self) -> "State":
        """The same rows in order of position; of layers that are one, all at once."""
        return self if self._whole is None else self.with_whole(self._whole.ordered())

    def with_layers(self, layers: Iterable[MultiState]) -> "State":
        """The same cell's state with other layers."""
        return State(layers, self.fingerprint)

    def become(self, other: "State") -> "State":
        """Hold what ``other`` holds (the one way a state changes; for transitions in place)."""
        self._layers, self._whole = other._layers, other._whole
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> "State":
        """``change`` applied to every tensor, row by row of the batch; the layers go on sharing one clock."""
        clock = change(self.clock)
        return self.with_layers(replace(H.map(change), clock=clock) for H in self)

    def clone(self) -> "State":
        """A copy that shares nothing with this state."""
        return self.map(torch.clone) if self._whole is None else self.with_whole(self._whole.map(torch.clone))

    __copy__ = clone  # two states on one storage would step over each other

    def detach(self) -> "State":
        """The same numbers without their graph (storage is shared, as with a tensor's ``detach``)."""
        return self.map(torch.Tensor.detach) if self._whole is None else self.with_whole(self._whole.map(torch.Tensor.detach))

    def to(self, *args, **kwargs) -> "State":
        """As ``Tensor.to``: a device, a floating dtype, or both; always a copy that shares nothing with this state.

        Integers keep their type, and an operator's numbers stay in at least float32.
        """
        try:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as wrong:
            raise Error(f"to: {str(wrong).splitlines()[0]}") from None
        check_device(device)
        check_dtype(dtype)
        numbers = dtype and torch.promote_types(dtype, torch.float32)

        def moved(H: MultiState, clock: Tensor) -> MultiState:
            types = {"keys": dtype, "values": dtype, "positions": None}
            rows = {name: x.to(device=device, dtype=types.get(name, numbers), copy=True) for name, x in H.rows.items()}
            return H.with_rows(rows, clock, gapless=H.gapless)

        clock = self.clock.to(device=device, copy=True)
        return self.with_layers(moved(H, clock) for H in self)

    def select(self, rows: Tensor | Sequence[int] | slice) -> "State":
        """The state of the batch rows named: picked, repeated or reordered, as a copy.

        Args:
            rows: int64 indices ``(B',)`` as a tensor or a list, or a slice.
        """
        batch = self.clock.shape[0]
        if isinstance(rows, slice):
            rows = range(batch)[rows]
        if not isinstance(rows, Tensor | Sequence | range):
            raise Error(f"select: rows are {rows!r}; expected a tensor, a list or a slice of batch rows")
        try:
            index = torch.as_tensor(rows if isinstance(rows, Tensor) else list(rows), device=self.clock.device)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise Error(f"select: rows are {rows!r:.60}; expected whole numbers") from None
        if index.numel() == 0:
            index = index.long()
        if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            raise Error(f"select: rows are {index.dtype} of shape {tuple(index.shape)}; expected integers of shape (B',)")
        if index.device.type == "cpu" and ((index < -batch) | (index >= batch)).any():
            raise Error(f"select: rows {index.tolist()} reach outside the batch of {batch}")
        index = torch.where(index < 0, index + batch, index)
        if self._whole is not None:
            each = (torch.arange(self._n, device=index.device)[:, None] * batch + index).flatten()  # in every layer
            clock = self._whole.clock.index_select(0, index)
            return self.with_whole(
                replace(self._whole.map(lambda x: x if x.ndim == 1 else x.index_select(0, each)), clock=clock)
            )
        return self.map(lambda x: x.index_select(0, index))

    def save(self, path: str | Path) -> None:
        """Write the state to one safetensors file, operators and their numbers included."""
        from .serialization import save_state  # deferred: this file knows torch only

        save_state(self, path)

    def __repr__(self) -> str:
        """A small table: operator, rows per layer, oldest position, bytes; like layers share a line."""
        clocks = self.clock.tolist()
        read = _span(sorted(set(clocks))) or "no"
        head = f"State: {len(self)} layers, batch {len(clocks)}, {read} tokens read, {_bytes(self.nbytes)}"
        if self.places is not None:
            head += f", places {self.places.rule}"
        table = [("layers", "operator", "rows", "oldest", "bytes")]
        kinds = groupby(enumerate(self), lambda item: (str(item[1].reduction), item[1].keys.shape[2], item[1].pinned))
        for (operator, rows, pinned), group in kinds:
            indices, layers = zip(*group, strict=True)
            held = [H.positions[H.positions >= 0] for H in layers]
            oldest = sorted({int(x.min()) for x in held if x.numel()})
            number = f"{pinned} pinned + {rows - pinned}" if pinned else str(rows)
            table.append((_span(indices), operator, number, _span(oldest), _bytes(_nbytes(layers))))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join([head, *("  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in table)])


def _nbytes(layers: Iterable[MultiState]) -> int:
    held = (x.untyped_storage() for H in layers for x in (*H.rows.values(), H.clock))
    return sum({storage._cdata: storage.nbytes() for storage in held}.values())  # what views share counts once


def _span(ordered: Sequence[int]) -> str:
    return "" if not ordered else str(ordered[0]) if ordered[0] == ordered[-1] else f"{ordered[0]}…{ordered[-1]}"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
